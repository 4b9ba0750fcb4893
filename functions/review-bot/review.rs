// SPDX-License-Identifier: Apache-2.0
//! A review from the event to the comment.
//!
//! It may end anywhere, and is then run again from its beginning; so everything it does can be done twice. The comment
//! is looked for before it is made, what the model said about a part is kept, and the finished review is kept before
//! the comment gets it.

use crate::changes;
use crate::comment::{self, code, escape, is_commit, marked_head, plural, short, View};
use crate::event::{self, Cause, Target, Wanted};
use crate::files::File;
use crate::findings::{bounded, merge, read_list, sort, Finding};
use crate::json_out::{elements, integer, number, object, salvage, string, text, write};
use crate::memory::{lock, Memory, FORGET_MS};
use crate::pack::{lines_within, pack, render, visible, Part, Piece};
use crate::prompt::{self, Message};
use crate::services::{Call, Failure, Reply, Services};
use crate::skip::{Patterns, PRIVATE};
use crate::tools;
use faas::json::Json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the operator may choose.
pub struct Settings {
    /// What a comment begins with that asks for a review.
    pub trigger: String,
    /// Who the bot is on GitHub; asked for when not known.
    pub login: Option<String>,
    pub patterns: Patterns,
    /// New findings that are shown of one review.
    pub max_findings: usize,
    /// Tokens of the diff in one call.
    pub part_tokens: u64,
    /// Calls of the model for one review.
    pub max_calls: u64,
    /// Tokens of all these calls, prompts and answers.
    pub max_tokens: u64,
    /// Calls that are under way at once.
    pub parallel: usize,
    /// How often the model may use its tools before it answers for a part.
    pub tool_rounds: u64,
}

/// An event as it arrived.
pub struct Delivery<'a> {
    pub event: &'a str,
    pub payload: &'a str,
    /// The same in every run of one delivery.
    pub run: &'a str,
    /// Which run of it this is, from 1.
    pub attempt: u64,
    /// Time that is left, in milliseconds.
    pub left_ms: u64,
}

/// What the job answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub status: u16,
    pub retry_after_s: Option<u64>,
    pub json: Json,
}

/// No new calls begin when less time is left.
const LAST_MS: u64 = 20_000;
/// The comment is not edited more often, but at the end; and the longer it takes, the less often: GitHub allows 500
/// comments and edits an hour.
const EDIT_EVERY_MS: u64 = 3_000;
/// More text of diffs than that is not held at once; the budget of tokens ends long before.
const MAX_PATCH_BYTES: usize = 3 * 1024 * 1024;
/// What the model said about a part is kept for so long.
const KEEP_MS: u64 = 24 * 3_600_000;
const MAX_PAGES: u64 = 100;
/// A comparison never lists more files, so one that lists as many may lack some.
const MAX_COMPARED: usize = 300;
const ANSWER_TOKENS: u64 = 500;
const PLAN_TOKENS: u64 = 300;
const SUMMARY_TOKENS: u64 = 400;
/// Where the model does not say what it can take.
const CONTEXT_TOKENS: u64 = 4096;
/// What the model's own template adds to a call.
const TEMPLATE_TOKENS: u64 = 100;
/// A piece of a diff may have as many, however long the name of its file is.
const MIN_PIECE_TOKENS: u64 = 32;
const BUSY_TRIES: u32 = 4;
const WRONG_TRIES: u32 = 2;
const MAX_PLANNED: usize = 150;
const TOOL_BYTES: usize = 4_000;
const UNREAD: &str = "the model's answer could not be read";
const REFUSED: &str = "the model refuses it";
const OVER_BUDGET: &str = "over the budget of this review";

/// Serves one delivery.
pub fn serve(services: &mut dyn Services, settings: &Settings, delivery: &Delivery) -> Outcome {
    let payload = match Json::parse(delivery.payload) {
        Some(payload) => payload,
        None => return Outcome { status: 400, retry_after_s: None, json: object(vec![("error", text("no JSON"))]) },
    };
    let target = match event::read(delivery.event, &payload, &settings.trigger) {
        Wanted::Review(target) => target,
        Wanted::Nothing(why) => return done(ignored(why)),
    };
    match locked(services, settings, delivery, &target) {
        Ok(json) => {
            if let Some(why) = json.get("ignored").and_then(Json::text) {
                services.log(&format!("{}: ignored: {why}", target.key()));
            }
            done(json)
        }
        Err(Failure { status, retry_after_s, reason }) => {
            services.log(&format!("{}: {reason}", target.key()));
            Outcome { status, retry_after_s, json: object(vec![("error", text(reason))]) }
        }
    }
}

fn done(json: Json) -> Outcome {
    Outcome { status: 200, retry_after_s: None, json }
}

fn ignored(why: &str) -> Json {
    object(vec![("ignored", text(why))])
}

fn locked(
    services: &mut dyn Services, settings: &Settings, delivery: &Delivery, target: &Target,
) -> Result<Json, Failure> {
    if let Cause::Asked { user, .. } = &target.cause {
        if user.eq_ignore_ascii_case(&login(services, settings)?) {
            return Ok(ignored("its own comment"));
        }
        if !may_ask(services, target, user)? {
            return Ok(ignored("asked for by someone without write access"));
        }
    }
    let mut held = lock(services, &target.key(), delivery.run)?;
    let result = Review::begin(&mut held, settings, delivery, target).and_then(|begun| match begun {
        Begun::Review(mut review) => review.run(),
        Begun::Nothing(why) => Ok(ignored(why)),
    });
    held.release();
    result
}

/// Asks `github`; what is to be tried again later is a failure, any other status an answer.
fn github(services: &mut dyn Services, method: &str, path: &str, body: &str) -> Result<Reply, Failure> {
    let reply = services.github(method, path, body)?;
    let said = string(&reply.json, "error");
    match reply.status {
        429 => Err(Failure {
            status: 429,
            retry_after_s: Some(reply.retry_after_s.unwrap_or(60)),
            reason: "GitHub's rate limit is reached".to_owned(),
        }),
        401 => Err(Failure::new("GitHub refuses the token: faas secrets set github GITHUB_TOKEN")),
        status if status >= 500 => {
            Err(Failure { retry_after_s: reply.retry_after_s, ..Failure::new(format!("github: {status} {said}")) })
        }
        _ => Ok(reply),
    }
}

/// The same for what has to be there.
fn found(reply: Reply, what: &str) -> Result<Json, Failure> {
    if reply.status < 300 {
        return Ok(reply.json);
    }
    Err(Failure::new(format!("{what}: GitHub answers {} {}", reply.status, string(&reply.json, "error"))))
}

fn login(services: &mut dyn Services, settings: &Settings) -> Result<String, Failure> {
    if let Some(login) = &settings.login {
        return Ok(login.clone());
    }
    let user = found(github(services, "GET", "/user", "")?, "who the bot is (set BOT_LOGIN if the token can't tell)")?;
    match string(&user, "login") {
        "" => Err(Failure::new("GitHub does not say who the bot is; set BOT_LOGIN")),
        login => Ok(login.to_owned()),
    }
}

fn may_ask(services: &mut dyn Services, target: &Target, user: &str) -> Result<bool, Failure> {
    let reply = github(services, "GET", &format!("{}/collaborators/{user}/permission", target.base()), "")?;
    if reply.status == 404 {
        return Ok(false);
    }
    let answer = found(reply, "who may ask")?;
    Ok(matches!(string(&answer, "permission"), "admin" | "maintain" | "write"))
}

/// How long to wait for GitHub to answer with what its own webhook was about: it may be some seconds behind.
const BEHIND_MS: [u64; 3] = [1000, 2000, 4000];
/// The job comes again after that if it still is.
const BEHIND_S: u64 = 15;
/// As often for a pull request that is not there at all.
const MISSING_ATTEMPTS: u64 = 3;

/// The pull request as it is; `None` where there is none, or the token may not see it.
fn current(services: &mut dyn Services, delivery: &Delivery, target: &Target) -> Result<Option<Json>, Failure> {
    let late = || Failure {
        status: 429,
        retry_after_s: Some(BEHIND_S),
        reason: "GitHub does not know yet what its webhook was about".to_owned(),
    };
    let mut pauses = BEHIND_MS.iter();
    loop {
        let reply = github(services, "GET", &format!("{}/pulls/{}", target.base(), target.number), "")?;
        let pull = if reply.status == 404 { None } else { Some(found(reply, "the pull request")?) };
        let is_behind = match (&target.cause, &pull) {
            (_, None) => true,
            (Cause::Pushed { head: told }, Some(pull)) => {
                is_commit(told) && told != head_of(pull) && !is_newer(services, target, told, head_of(pull))?
            }
            (Cause::Asked { .. }, Some(_)) => false,
        };
        if !is_behind {
            return Ok(pull);
        }
        if let Some(pause_ms) = pauses.next() {
            services.sleep_ms(*pause_ms);
            continue;
        }
        return match (&target.cause, &pull) {
            (_, None) if delivery.attempt < MISSING_ATTEMPTS => Err(late()),
            (Cause::Pushed { head: told }, Some(shown)) if is_newer(services, target, head_of(shown), told)? => Err(late()),
            // Neither is ahead: the commit that was told of is gone, after another push that was forced.
            _ => Ok(pull),
        };
    }
}

fn head_of(pull: &Json) -> &str {
    pull.get("head").map_or("", |head| string(head, "sha"))
}

/// Whether a commit has another one behind it: then that was pushed later.
fn is_newer(services: &mut dyn Services, target: &Target, old: &str, new: &str) -> Result<bool, Failure> {
    let reply = github(services, "GET", &format!("{}/compare/{old}...{new}", target.base()), "")?;
    Ok(reply.status < 300 && string(&reply.json, "status") == "ahead")
}

/// All pages of a listing, or what answered instead of the first one.
fn pages(
    services: &mut dyn Services, path: &str, mut each: impl FnMut(&Json) -> bool,
) -> Result<Option<Reply>, Failure> {
    let mut page = 1;
    while page <= MAX_PAGES {
        let reply = github(services, "GET", &format!("{path}?page={page}"), "")?;
        if reply.status >= 300 {
            return if page == 1 { Ok(Some(reply)) } else { found(reply, "a further page").map(|_| None) };
        }
        if !each(&reply.json) {
            return Ok(None);
        }
        match integer(&reply.json, "next") {
            Some(next) if next > page => page = next,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Calls and tokens that a review used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    calls: u64,
    prompt: u64,
    completion: u64,
}

impl Spent {
    fn of(reply: &Json) -> Spent {
        let count = |name| integer(reply, name).unwrap_or(0);
        Spent { calls: 1, prompt: count("prompt_tokens"), completion: count("completion_tokens") }
    }

    fn read(kept: &Json) -> Spent {
        Spent { calls: integer(kept, "calls").unwrap_or(0), ..Spent::of(kept) }
    }

    fn json(self) -> Vec<(&'static str, Json)> {
        vec![
            ("calls", number(self.calls)),
            ("prompt_tokens", number(self.prompt)),
            ("completion_tokens", number(self.completion)),
        ]
    }

    fn add(&mut self, other: Spent) {
        self.calls += other.calls;
        self.prompt += other.prompt;
        self.completion += other.completion;
    }

    fn tokens(self) -> u64 {
        self.prompt + self.completion
    }
}

struct Model {
    name: String,
    context: u64,
}

/// A part on its way through the model.
struct Task {
    part: usize,
    messages: Vec<Message>,
    rounds: u64,
    /// Tokens that its next call takes at most, by estimate.
    tokens: u64,
    /// How often the model was busy, or failed, since its last answer.
    busy: u32,
    wrong: u32,
    spent: Spent,
    found: Vec<Finding>,
    dropped: usize,
}

enum Begun<'a> {
    Review(Box<Review<'a>>),
    Nothing(&'static str),
}

struct Review<'a> {
    services: &'a mut dyn Services,
    settings: &'a Settings,
    target: &'a Target,
    head: String,
    title: String,
    description: String,
    memory: Memory,
    began_ms: u64,
    ends_ms: u64,
    edited_ms: u64,
    /// No edits before that, when GitHub has asked for a pause.
    quiet_until_ms: u64,
    mark: String,
    model: Option<Model>,
    spent: Spent,
    files: Vec<File>,
    skipped: Vec<(String, String)>,
    /// Files that no model may see.
    private: BTreeSet<String>,
    /// Files that should be read and are not, or not in whole.
    unread: BTreeSet<String>,
    /// Files that GitHub does not list.
    unlisted: u64,
    /// The review is done; what is left is to show it.
    concluded: bool,
    found: Vec<Finding>,
    earlier: Vec<Finding>,
    dropped: usize,
}

impl<'a> Review<'a> {
    /// Looks whether there is anything to review.
    fn begin(
        services: &'a mut dyn Services, settings: &'a Settings, delivery: &Delivery, target: &'a Target,
    ) -> Result<Begun<'a>, Failure> {
        let began_ms = services.now_ms();
        let mut memory = Memory::load(services, &target.key())?;
        if memory.pending {
            publish(services, settings, target, &mut memory)?;
        }
        let pull = match current(services, delivery, target)? {
            Some(pull) => pull,
            None => return Ok(Begun::Nothing("no such pull request, or none that GITHUB_TOKEN may see")),
        };
        if string(&pull, "state") != "open" {
            return nothing(services, target, memory, "not open any more");
        }
        let is_pushed = matches!(target.cause, Cause::Pushed { .. });
        if is_pushed && pull.get("draft") == Some(&Json::Bool(true)) {
            return nothing(services, target, memory, "a draft");
        }
        let head = head_of(&pull).to_owned();
        if !is_commit(&head) {
            return Err(Failure::new("GitHub names no head of the pull request"));
        }
        let mut reviewed = memory.head.clone();
        if memory.comment.is_none() {
            if let Some((comment, marked)) = locate(services, settings, target)? {
                memory.comment = Some(comment);
                memory.save(services, &target.key())?;
                if reviewed.is_empty() {
                    // Without the findings that went with it, it is no commit to go on from.
                    reviewed = marked;
                }
            }
        }
        match target.cause {
            Cause::Pushed { .. } if reviewed == head => {
                return nothing(services, target, memory, "reviewed already");
            }
            Cause::Asked { comment, .. } if comment <= memory.asked => return Ok(Begun::Nothing("answered already")),
            _ => {}
        }
        let mark = format!("DATA-{:016x}", services.random());
        Ok(Begun::Review(Box::new(Review {
            services,
            settings,
            target,
            head,
            title: visible(&bounded(string(&pull, "title"), 200)),
            description: visible(&bounded(string(&pull, "body"), 800)),
            memory,
            began_ms,
            ends_ms: began_ms + delivery.left_ms,
            edited_ms: 0,
            quiet_until_ms: 0,
            mark,
            model: None,
            spent: Spent::default(),
            files: Vec::new(),
            skipped: Vec::new(),
            private: BTreeSet::new(),
            unread: BTreeSet::new(),
            unlisted: 0,
            concluded: false,
            found: Vec::new(),
            earlier: Vec::new(),
            dropped: 0,
        })))
    }

    fn run(&mut self) -> Result<Json, Failure> {
        let result = self.stages();
        if let Err(failure) = &result {
            // Not when GitHub has just asked for a pause, nor over a review that is done.
            if failure.status != 429 && !self.concluded && self.memory.comment.is_some() {
                let status = format!(
                    "The review of {} was interrupted: {}. It is tried again by itself for some time; a comment with \
                     {} starts it anew.",
                    code(short(&self.head)),
                    escape(&bounded(&failure.reason, 200)),
                    code(&self.settings.trigger)
                );
                self.progress(&status, true);
            }
        }
        result
    }

    fn stages(&mut self) -> Result<Json, Failure> {
        let began = format!("Reading {}.", code(short(&self.head)));
        self.announce(&began)?;
        let touched = self.gather()?;
        let parts = self.parts()?;
        self.ask_parts(&parts)?;
        let view = self.conclude(touched)?;
        self.finish(&view)
    }

    fn time_is_up(&mut self) -> bool {
        self.services.now_ms() + LAST_MS > self.ends_ms
    }

    // ---- the comment ------------------------------------------------------------------------------------------------

    fn unfinished(&self, status: &str) -> View {
        View {
            reviewed: self.memory.head.clone(),
            status: status.to_owned(),
            fresh: merge(self.found.clone()),
            earlier: self.earlier.clone(),
            ..View::default()
        }
    }

    /// Has the comment there.
    fn announce(&mut self, status: &str) -> Result<(), Failure> {
        self.earlier = self.memory.findings.clone();
        self.memory.unfinished = true;
        if self.memory.comment.is_some() {
            self.memory.save(self.services, &self.target.key())?;
            self.progress(status, true);
            return Ok(());
        }
        let body = comment::render(&self.unfinished(status));
        self.memory.posting = true;
        self.memory.save(self.services, &self.target.key())?;
        self.memory.comment = Some(create(self.services, self.target, &body)?);
        self.memory.save(self.services, &self.target.key())
    }

    /// Shows how far it is; nothing depends on it.
    fn progress(&mut self, status: &str, now: bool) {
        let time = self.services.now_ms();
        let every_ms = EDIT_EVERY_MS.max(time.saturating_sub(self.began_ms) / 20);
        if (!now && time < self.edited_ms + every_ms) || time < self.quiet_until_ms {
            return;
        }
        self.edited_ms = time;
        if let Some(id) = self.memory.comment {
            let body = comment::render(&self.unfinished(status));
            if let Err(Failure { status: 429, retry_after_s, .. }) = edit(self.services, self.target, id, &body) {
                self.quiet_until_ms = time + 1000 * retry_after_s.unwrap_or(60);
            }
        }
    }

    // ---- what is new ------------------------------------------------------------------------------------------------

    /// Finds the files to review and what of the earlier findings is still there; returns those that may have been
    /// dealt with.
    fn gather(&mut self) -> Result<Vec<Finding>, Failure> {
        let whole = self.listed()?;
        let fresh_start = self.memory.head.is_empty() || self.memory.head == self.head;
        let compared = if fresh_start { None } else { self.compared()? };
        let all = whole.iter().chain(compared.iter().flatten());
        self.private = changes::private(all, &self.memory.private, &self.settings.patterns);
        if self.private.len() > self.memory.private.len() {
            self.memory.private = self.private.iter().cloned().collect();
            self.memory.save(self.services, &self.target.key())?;
        }
        let known = self.memory.findings.clone();
        let is_there = |path: &str| whole.iter().any(|file| file.path == path || file.before == path);
        let mut touched = Vec::new();
        self.earlier.clear();
        let candidates = match compared {
            _ if self.memory.head == self.head => {
                let known = known.into_iter().filter(|finding| is_there(&finding.path));
                // On no line it only waited for its file to be read again.
                (self.earlier, touched) = known.partition(|finding| finding.line > 0);
                whole
            }
            None => {
                touched.extend(known.into_iter().filter(|finding| is_there(&finding.path)));
                whole
            }
            Some(files) => {
                for finding in known {
                    match changes::carried(&finding, &files) {
                        Some(moved) if moved.line == 0 && self.memory.unread.contains(&moved.path) => touched.push(moved),
                        Some(moved) if is_there(&moved.path) => self.earlier.push(moved),
                        Some(_) => {}
                        None => touched.push(finding),
                    }
                }
                changes::fresh(files, whole, &self.memory.unread)
            }
        };
        for file in candidates {
            let hidden = Some(PRIVATE).filter(|_| self.private.contains(&file.path));
            match hidden.or_else(|| file.reason(&self.settings.patterns)) {
                Some(reason) => self.skipped.push((file.path, reason.to_owned())),
                None => self.files.push(file),
            }
        }
        Ok(touched)
    }

    /// All files of the pull request.
    fn listed(&mut self) -> Result<Vec<File>, Failure> {
        let path = format!("{}/pulls/{}", self.target.base(), self.target.number);
        let mut pauses = BEHIND_MS.iter();
        let whole = loop {
            let (mut whole, mut room) = (Vec::new(), MAX_PATCH_BYTES);
            let failed = pages(self.services, &format!("{path}/files"), |page| {
                whole.extend(File::page(page, &mut room));
                true
            })?;
            if let Some(reply) = failed {
                found(reply, "the files of the pull request")?;
            }
            // The list may be that of the head before.
            let is_behind = whole.iter().any(|file| file.is_of_another(&self.head));
            match pauses.next() {
                Some(pause_ms) if is_behind => self.services.sleep_ms(*pause_ms),
                _ => break whole,
            }
        };
        // The list is of no commit: after a push, its lines would be taken for those of the head before.
        let pull = found(github(self.services, "GET", &path, "")?, "the pull request")?;
        if head_of(&pull) != self.head {
            return Err(Failure { status: 429, retry_after_s: Some(1), reason: "it was pushed to meanwhile".to_owned() });
        }
        self.unlisted = integer(&pull, "changed_files").unwrap_or(0).saturating_sub(whole.len() as u64);
        Ok(whole)
    }

    /// What changed since the last review; `None` when that can't be told any more.
    fn compared(&mut self) -> Result<Option<Vec<File>>, Failure> {
        let path = format!("{}/compare/{}...{}", self.target.base(), self.memory.head, self.head);
        let (mut files, mut ahead, mut room) = (Vec::new(), false, MAX_PATCH_BYTES);
        let failed = pages(self.services, &path, |page| {
            // After a rebase GitHub compares with what both have in common: other lines than those that were reviewed.
            ahead = string(page, "status") == "ahead";
            files.extend(File::page(page, &mut room));
            true
        })?;
        Ok(if failed.is_none() && ahead && files.len() < MAX_COMPARED { Some(files) } else { None })
    }

    // ---- the plan ---------------------------------------------------------------------------------------------------

    /// Indices of the files in the order of their review.
    fn planned(&mut self) -> Result<Vec<usize>, Failure> {
        let mut order: Vec<usize> = (0..self.files.len()).collect();
        let size = |at: &usize| self.files[*at].added + self.files[*at].removed;
        order.sort_by_key(|at| (std::cmp::Reverse(size(at)), &self.files[*at].path));
        if order.len() < 2 || self.settings.max_calls < 3 {
            return Ok(order);
        }
        let mut room = (self.model().context.saturating_sub(PLAN_TOKENS + 700) * 2) as usize;
        let mut titles = Vec::new();
        for at in order.iter().take(MAX_PLANNED) {
            let title = bounded(&self.files[*at].title(), 300);
            if title.len() + 8 > room {
                break;
            }
            room -= title.len() + 8;
            titles.push(title);
        }
        let key = format!("plan/{}/{}/{:016x}", self.target.key(), self.head, digest(&titles.join("\n")));
        let kept = self.services.get(&key)?.and_then(|kept| Json::parse(&kept));
        let plan = match kept {
            Some(plan) => plan,
            None => {
                let (messages, schema) = prompt::plan(&self.mark, &self.title, &self.description, &titles);
                let mut plan = vec![("order", Json::Array(Vec::new()))];
                let reply = self.ask(&prompt::chat(&messages, &schema, PLAN_TOKENS))?;
                if reply.status < 300 {
                    let answer = salvage(string(&reply.json, "text")).unwrap_or(Json::Null);
                    plan = vec![("order", Json::Array(elements(&answer, "order").to_vec()))];
                }
                plan.extend(Spent::of(&reply.json).json());
                let plan = object(plan);
                self.services.set(&key, &write(&plan), KEEP_MS)?;
                plan
            }
        };
        self.spent.add(Spent::read(&plan));
        let mut first: Vec<usize> = Vec::new();
        for chosen in elements(&plan, "order") {
            let chosen = chosen.number().filter(|chosen| *chosen >= 1.0 && *chosen <= titles.len() as f64);
            if let Some(at) = chosen.map(|chosen| order[chosen as usize - 1]) {
                if !first.contains(&at) {
                    first.push(at);
                }
            }
        }
        // A plan only orders: a diff can't talk its way out of the review.
        order.retain(|at| !first.contains(at));
        first.extend(order);
        Ok(first)
    }

    fn model(&self) -> &Model {
        self.model.as_ref().expect("the model is known before it is used")
    }

    /// What the model is; asked once.
    fn meet_model(&mut self) -> Result<(), Failure> {
        let answer = self.answered("/model", "")?;
        let context = integer(&answer, "context_tokens").filter(|tokens| *tokens > 0).unwrap_or(CONTEXT_TOKENS);
        self.model = Some(Model { name: bounded(string(&answer, "model"), 100), context });
        Ok(())
    }

    fn counted(&mut self, texts: &[String]) -> Result<Vec<u64>, Failure> {
        let list = texts.iter().map(text).collect();
        let answer = self.answered("/count", &write(&object(vec![("texts", Json::Array(list))])))?;
        let counts: Vec<u64> = elements(&answer, "tokens").iter().filter_map(Json::number).map(|n| n as u64).collect();
        if counts.len() != texts.len() {
            return Err(Failure::new("llm counts other texts than it was given"));
        }
        Ok(counts)
    }

    /// The parts that are within the budget, in the plan's order; what is not is listed.
    fn parts(&mut self) -> Result<Vec<Part>, Failure> {
        if self.files.is_empty() {
            return Ok(Vec::new());
        }
        self.meet_model()?;
        let count = plural(self.files.len(), "file", "files");
        let status = format!("Planning the review of {}: {count}.", code(short(&self.head)));
        self.progress(&status, true);
        let order = self.planned()?;
        let fixed: Vec<String> = prompt::part(&self.mark, "").into_iter().map(|(_, content)| content).collect();
        let fixed: u64 = self.counted(&fixed)?.iter().sum::<u64>() + TEMPLATE_TOKENS;
        let context = self.model().context;
        let answer = ANSWER_TOKENS.min(context / 4);
        let budget = self.settings.part_tokens.min(context.saturating_sub(fixed + answer)).max(2 * MIN_PIECE_TOKENS);
        let calls = self.settings.max_calls.saturating_sub(self.spent.calls + 1).max(1);
        let mut left = self.settings.max_tokens.saturating_sub(self.spent.tokens() + SUMMARY_TOKENS * 2);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        for files in order.chunks(16) {
            for piece in self.pieces(files, budget)? {
                pieces.push(piece);
            }
            parts = pack(pieces.clone(), budget);
            let cost: u64 = parts.iter().map(|part| part.tokens + fixed + answer).sum();
            if parts.len() as u64 > calls || cost > left {
                break;
            }
        }
        let mut kept: Vec<Part> = Vec::new();
        for part in parts {
            let cost = part.tokens + fixed + answer;
            if kept.len() as u64 >= calls || (cost > left && !kept.is_empty()) {
                break;
            }
            left = left.saturating_sub(cost);
            kept.push(part);
        }
        self.list_unreviewed(&kept);
        Ok(kept)
    }

    /// The hunks of these files, each within the budget.
    fn pieces(&mut self, files: &[usize], budget: u64) -> Result<Vec<Piece>, Failure> {
        let hunks = |at: &usize| self.files[*at].hunks.iter().map(|hunk| (*at, hunk.clone())).collect::<Vec<_>>();
        let mut open: VecDeque<_> = files.iter().flat_map(hunks).collect();
        let titles: Vec<String> = files.iter().map(|at| named(&self.files[*at])).collect();
        let titles: BTreeMap<usize, u64> = files.iter().copied().zip(self.counted(&titles)?).collect();
        let mut pieces = Vec::new();
        while !open.is_empty() {
            let (mut batch, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
            while batch.len() < 64 && bytes < 200_000 {
                let (file, hunk) = match open.pop_front() {
                    Some(next) => next,
                    None => break,
                };
                let budget = budget.saturating_sub(titles[&file]).max(MIN_PIECE_TOKENS);
                // No tokenizer makes less than one token of 16 bytes of code; not even one call could take it.
                let rendered = render(&hunk);
                if rendered.len() as u64 > 16 * budget {
                    if let Some(lines) = lines_within(&hunk, rendered.len() as u64 / 4, budget) {
                        hunk.split(lines).into_iter().rev().for_each(|piece| open.push_front((file, piece)));
                        continue;
                    }
                }
                bytes += rendered.len();
                texts.push(rendered);
                batch.push((file, hunk));
            }
            if batch.is_empty() {
                continue;
            }
            let counts = self.counted(&texts)?;
            let mut again = VecDeque::new();
            for ((file, hunk), tokens) in batch.into_iter().zip(counts) {
                let title_tokens = titles[&file].min(budget);
                let budget = budget.saturating_sub(title_tokens).max(MIN_PIECE_TOKENS);
                match lines_within(&hunk, tokens, budget).filter(|_| tokens > budget) {
                    Some(lines) => again.extend(hunk.split(lines).into_iter().map(|piece| (file, piece))),
                    None => pieces.push(Piece { file, hunk, tokens: tokens.min(budget), title_tokens }),
                }
            }
            again.append(&mut open);
            open = again;
        }
        let place = |file: usize| files.iter().position(|at| *at == file);
        pieces.retain(|piece| !piece.hunk.targets().is_empty());
        pieces.sort_by_key(|piece| (place(piece.file), piece.hunk.new_start, piece.hunk.old_start));
        Ok(pieces)
    }

    fn list_unreviewed(&mut self, parts: &[Part]) {
        for (at, file) in self.files.iter().enumerate() {
            if !parts.iter().flat_map(|part| &part.pieces).any(|piece| piece.file == at) {
                self.unread.insert(file.path.clone());
                self.skipped.push((file.path.clone(), OVER_BUDGET.to_owned()));
            } else if !covers(parts, at, file) {
                self.unread.insert(file.path.clone());
                self.skipped.push((file.path.clone(), format!("in part: the rest is {OVER_BUDGET}")));
            }
        }
    }

    // ---- the model --------------------------------------------------------------------------------------------------

    /// One request to `llm`, tried again while it is busy.
    fn ask_at(&mut self, path: &str, body: &str) -> Result<Reply, Failure> {
        let (mut busy, mut wrong) = (0, 0);
        loop {
            let call = self.services.begin(path, body)?;
            let (_, reply) = self.services.wait(&[call])?;
            if is_busy(&reply) {
                busy += 1;
                self.pause(&reply, busy)?;
                continue;
            }
            wrong += 1;
            if !went_wrong(&reply) || wrong >= WRONG_TRIES {
                return checked(reply);
            }
        }
    }

    fn ask(&mut self, body: &str) -> Result<Reply, Failure> {
        self.ask_at("/chat", body)
    }

    fn answered(&mut self, path: &str, body: &str) -> Result<Json, Failure> {
        let reply = self.ask_at(path, body)?;
        if reply.status < 300 {
            return Ok(reply.json);
        }
        Err(Failure::new(format!("llm: {path} answers {} {}", reply.status, string(&reply.json, "error"))))
    }

    /// Waits a little for a busy model; gives the turn back when it stays busy.
    fn pause(&mut self, reply: &Reply, tries: u32) -> Result<(), Failure> {
        let wait_s = reply.retry_after_s.unwrap_or(1);
        if tries >= BUSY_TRIES || wait_s > 5 {
            let retry_after_s = Some(wait_s);
            return Err(Failure { retry_after_s, ..Failure::new("the model is busy") });
        }
        self.services.sleep_ms(1000 * wait_s);
        Ok(())
    }

    /// Has every part reviewed, several side by side.
    fn ask_parts(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let mut ready: VecDeque<Task> = VecDeque::new();
        let mut finished = 0;
        for (at, part) in parts.iter().enumerate() {
            match self.services.get(&self.part_key(parts, at))?.and_then(|kept| Json::parse(&kept)) {
                Some(kept) => {
                    self.take(parts, at, &kept);
                    finished += 1;
                }
                None => ready.push_back(self.task(at, part)),
            }
        }
        let mut running: Vec<(Call, Task)> = Vec::new();
        let mut parallel = self.settings.parallel.max(1);
        loop {
            while running.len() < parallel {
                let task = match ready.pop_front() {
                    Some(task) => task,
                    None => break,
                };
                let fits = self.fits(&task, &running, &ready);
                if self.time_is_up() || (!fits && finished + running.len() > 0) {
                    self.give_up(parts, task)?;
                    continue;
                }
                let body = self.request(&parts[task.part], &task);
                running.push((self.services.begin("/chat", &body)?, task));
            }
            if running.is_empty() {
                return Ok(());
            }
            let calls: Vec<Call> = running.iter().map(|(call, _)| *call).collect();
            let (at, reply) = self.services.wait(&calls)?;
            let (_, mut task) = running.remove(at);
            if is_busy(&reply) {
                task.busy += 1;
                parallel = running.len().max(1);
                if running.is_empty() || task.busy >= BUSY_TRIES {
                    self.pause(&reply, task.busy)?;
                }
                ready.push_front(task);
                continue;
            }
            task.busy = 0;
            if went_wrong(&reply) && task.wrong + 1 < WRONG_TRIES {
                task.wrong += 1;
                ready.push_front(task);
                continue;
            }
            let reply = checked(reply)?;
            if let Some(task) = self.answer(parts, task, &reply)? {
                ready.push_front(task);
                continue;
            }
            finished += 1;
            let count = merge(self.found.clone()).len();
            let status = format!(
                "Reviewing {}: {finished} of {} done, {} so far.",
                code(short(&self.head)),
                plural(parts.len(), "part", "parts"),
                plural(count, "finding", "findings")
            );
            self.progress(&status, false);
        }
    }

    fn task(&self, at: usize, part: &Part) -> Task {
        let mut data = String::new();
        let mut file = usize::MAX;
        for piece in &part.pieces {
            if piece.file != file {
                file = piece.file;
                data += &named(&self.files[file]);
            }
            data += &render(&piece.hunk);
        }
        let mut messages = prompt::part(&self.mark, &data);
        let context = self.model().context;
        let tokens = part.tokens + 400 + ANSWER_TOKENS.min(context / 4);
        let rounds = if has_room(tokens, context) { self.settings.tool_rounds } else { 0 };
        if rounds > 0 {
            messages[1].1 += prompt::TOOLS;
        }
        Task { part: at, messages, rounds, tokens, busy: 0, wrong: 0, spent: Spent::default(), found: Vec::new(), dropped: 0 }
    }

    fn request(&self, part: &Part, task: &Task) -> String {
        let mut paths: Vec<&str> = part.pieces.iter().map(|piece| self.files[piece.file].path.as_str()).collect();
        paths.dedup();
        let mut lines: Vec<u64> = part.pieces.iter().flat_map(|piece| piece.hunk.targets()).collect();
        lines.sort_unstable();
        lines.dedup();
        let schema = prompt::findings(&paths, &lines, task.rounds > 0);
        prompt::chat(&task.messages, &schema, ANSWER_TOKENS.min(self.model().context / 4))
    }

    /// Takes the answer to a task's call; returns the task when it goes on.
    fn answer(&mut self, parts: &[Part], mut task: Task, reply: &Reply) -> Result<Option<Task>, Failure> {
        if reply.status >= 300 {
            let said = bounded(string(&reply.json, "error"), 120);
            let what = if went_wrong(reply) { "the model fails" } else { REFUSED };
            // What it said before it had used a tool stays its answer.
            let answered = task.spent.calls > 0 && !went_wrong(reply);
            let problem = format!("{what}: {} {said}", reply.status);
            self.keep(parts, task, if answered { "" } else { &problem })?;
            return Ok(None);
        }
        task.wrong = 0;
        task.spent.add(Spent::of(&reply.json));
        let said = string(&reply.json, "text");
        let answer = match salvage(said) {
            Some(answer) => answer,
            None => {
                self.keep(parts, task, UNREAD)?;
                return Ok(None);
            }
        };
        let files = &self.files;
        let inside = |finding: &Finding| {
            let mut pieces = parts[task.part].pieces.iter().filter(|piece| files[piece.file].path == finding.path);
            pieces.any(|piece| piece.hunk.has(finding.line))
        };
        let (found, dropped) = read_list(&answer, "findings", inside);
        task.found.extend(found);
        task.dropped += dropped;
        let asks = if task.rounds > 0 { tools::read(&answer) } else { Vec::new() };
        if asks.is_empty() || self.time_is_up() || !has_room(task.tokens, self.model().context) {
            self.keep(parts, task, "")?;
            return Ok(None);
        }
        let mut results = String::new();
        for ask in asks {
            let said = match ask.request(&self.head, |path| self.hides(path)) {
                Err(why) => why,
                Ok(path) => self.looked_up(&ask, &path)?,
            };
            results += &format!("{}\n{said}\n", ask.title());
        }
        task.messages.push(("assistant", said.to_owned()));
        task.messages.push(("user", prompt::results(&self.mark, &results)));
        task.rounds -= 1;
        task.tokens += results.len() as u64 / 2 + ANSWER_TOKENS;
        Ok(Some(task))
    }

    /// What a tool finds. A tool that fails, or finds GitHub's rate limit reached, is no reason to end the review.
    fn looked_up(&mut self, ask: &tools::Ask, path: &str) -> Result<String, Failure> {
        let reply = self.services.github("GET", &format!("{}{path}", self.target.base()), "")?;
        if reply.status < 300 {
            return Ok(ask.render(&reply.json, |path| self.hides(path), TOOL_BYTES / 2));
        }
        Ok(if reply.status == 404 { "there is none" } else { tools::NOT_AVAILABLE }.to_owned())
    }

    fn hides(&self, path: &str) -> bool {
        self.private.contains(path) || self.settings.patterns.hides(path)
    }

    /// Keeps what came of a part, for a run after this one, and takes it.
    fn keep(&mut self, parts: &[Part], task: Task, problem: &str) -> Result<(), Failure> {
        let mut kept = vec![
            ("findings", Json::Array(task.found.iter().map(Finding::json).collect())),
            ("dropped", number(task.dropped as u64)),
            ("problem", text(problem)),
        ];
        kept.extend(task.spent.json());
        let kept = object(kept);
        self.services.set(&self.part_key(parts, task.part), &write(&kept), KEEP_MS)?;
        self.take(parts, task.part, &kept);
        Ok(())
    }

    fn take(&mut self, parts: &[Part], at: usize, kept: &Json) {
        self.spent.add(Spent::read(kept));
        self.found.extend(elements(kept, "findings").iter().filter_map(Finding::read));
        self.dropped += integer(kept, "dropped").unwrap_or(0) as usize;
        if !string(kept, "problem").is_empty() {
            self.unreviewed(parts, at, string(kept, "problem"));
        }
    }

    /// Whether the budget allows the next call of a task. A summary is always left over, and nobody asks for tools as
    /// long as parts that have not begun would miss the call.
    fn fits(&self, task: &Task, running: &[(Call, Task)], ready: &VecDeque<Task>) -> bool {
        let mut calls = self.spent.calls + task.spent.calls;
        let mut tokens = self.spent.tokens() + task.spent.tokens() + task.tokens;
        for (_, other) in running {
            calls += other.spent.calls + 1;
            tokens += other.spent.tokens() + other.tokens;
        }
        for other in ready {
            calls += other.spent.calls + u64::from(task.spent.calls > 0 && other.spent.calls == 0);
            tokens += other.spent.tokens();
        }
        calls + 1 < self.settings.max_calls.max(2) && tokens <= self.settings.max_tokens
    }

    /// Ends a task without its next call.
    fn give_up(&mut self, parts: &[Part], task: Task) -> Result<(), Failure> {
        if task.spent.calls > 0 {
            return self.keep(parts, task, "");
        }
        self.unreviewed(parts, task.part, OVER_BUDGET);
        Ok(())
    }

    fn unreviewed(&mut self, parts: &[Part], at: usize, reason: &str) {
        for piece in &parts[at].pieces {
            let entry = (self.files[piece.file].path.clone(), reason.to_owned());
            // What the model refuses it would refuse again.
            if !reason.starts_with(REFUSED) {
                self.unread.insert(entry.0.clone());
            }
            if !self.skipped.contains(&entry) {
                self.skipped.push(entry);
            }
        }
    }

    fn part_key(&self, parts: &[Part], at: usize) -> String {
        let mut shown = self.memory.head.clone();
        // Who asks for a review wants one, not what was kept of the one before.
        if let Cause::Asked { comment, .. } = self.target.cause {
            shown += &format!(" {comment}");
        }
        for piece in &parts[at].pieces {
            shown += &format!("\n{}\n{}", self.files[piece.file].path, render(&piece.hunk));
        }
        format!("part/{}/{}/{at}-{:016x}", self.target.key(), self.head, digest(&shown))
    }

    // ---- the end ----------------------------------------------------------------------------------------------------

    /// What the comment says in the end.
    fn conclude(&mut self, touched: Vec<Finding>) -> Result<View, Failure> {
        let mut fresh = Vec::new();
        for finding in merge(std::mem::take(&mut self.found)) {
            if self.earlier.iter().any(|other| other.is_same(&finding)) {
                continue;
            }
            if touched.iter().any(|other| other.is_like(&finding)) {
                self.earlier.push(finding);
            } else {
                fresh.push(finding);
            }
        }
        // What a review that could not read the file did not find again is not known to be gone.
        for finding in touched {
            if self.is_untold(&finding.path) && !self.earlier.iter().any(|other| other.is_like(&finding)) {
                self.earlier.push(Finding { line: 0, ..finding });
            }
        }
        sort(&mut self.earlier);
        let more = fresh.len().saturating_sub(self.settings.max_findings);
        fresh.truncate(self.settings.max_findings);
        self.skipped.sort();
        // So that they are shown while the summary is made.
        self.found = fresh.clone();
        let (summary, risks) = self.summed_up(&fresh)?;
        Ok(View {
            reviewed: self.head.clone(),
            status: String::new(),
            summary,
            risks,
            fresh,
            earlier: std::mem::take(&mut self.earlier),
            more,
            skipped: std::mem::take(&mut self.skipped),
            footer: self.footer(),
        })
    }

    /// Whether nobody knows what became of a file's findings: it should have been read, and was not.
    fn is_untold(&self, path: &str) -> bool {
        let untold = |reason: &str| reason.starts_with(REFUSED) || reason.starts_with("too large");
        self.unread.contains(path) || self.skipped.iter().any(|(skipped, reason)| skipped == path && untold(reason))
    }

    /// The summary and the risks, by the model if it can, else by counting.
    fn summed_up(&mut self, fresh: &[Finding]) -> Result<(String, Vec<String>), Failure> {
        let counted = match (fresh.len(), self.files.len()) {
            (_, 0) if self.skipped.is_empty() => "Nothing new to review.".to_owned(),
            (_, 0) => "Nothing to review: every changed file is skipped.".to_owned(),
            (0, files) => format!("No new findings in {}.", plural(files, "file", "files")),
            (found, files) => {
                format!("{} in {}.", plural(found, "new finding", "new findings"), plural(files, "file", "files"))
            }
        };
        let fits = self.spent.calls < self.settings.max_calls && self.spent.tokens() < self.settings.max_tokens;
        if self.files.is_empty() || !fits || self.time_is_up() {
            return Ok((counted, Vec::new()));
        }
        let status = format!("Summing up the review of {}.", code(short(&self.head)));
        self.progress(&status, true);
        let mut room = (self.model().context.saturating_sub(SUMMARY_TOKENS + 500) * 2) as usize;
        let mut data = format!("Title: {}\nDescription: {}\nFiles:\n", self.title, self.description);
        let files = self.files.iter().take(60).map(|file| format!("- {}\n", bounded(&file.title(), 200)));
        let listed = |one: &Finding| format!("- {}, {}: {}\n", one.severity.name(), bounded(&one.path, 200), one.title);
        let found = fresh.iter().map(listed);
        let lines: Vec<String> = files.chain(["Findings:\n".to_owned()]).chain(found).collect();
        for line in lines {
            if line.len() > room {
                break;
            }
            room -= line.len();
            data += &line;
        }
        let (messages, schema) = prompt::summary(&self.mark, &data);
        let reply = self.ask(&prompt::chat(&messages, &schema, SUMMARY_TOKENS.min(self.model().context / 4)))?;
        if reply.status >= 300 {
            return Ok((counted, Vec::new()));
        }
        self.spent.add(Spent::of(&reply.json));
        let answer = salvage(string(&reply.json, "text")).unwrap_or(Json::Null);
        let risks = elements(&answer, "risks").iter().filter_map(Json::text).map(|risk| bounded(risk, 200));
        let risks: Vec<String> = risks.filter(|risk| !risk.is_empty()).take(3).collect();
        match bounded(string(&answer, "summary"), 800) {
            summary if summary.is_empty() => Ok((counted, risks)),
            summary => Ok((summary, risks)),
        }
    }

    fn footer(&mut self) -> Vec<String> {
        let mut footer = vec![format!("Reviewed {}", code(short(&self.head)))];
        if !self.memory.head.is_empty() && self.memory.head != self.head {
            footer[0] += &format!(", what is new since {}", code(short(&self.memory.head)));
        }
        footer.push(plural(self.files.len(), "file", "files"));
        if self.unlisted > 0 {
            footer.push(format!("{} more that GitHub does not list", self.unlisted));
        }
        if let Some(model) = self.model.as_ref().filter(|_| self.spent.calls > 0) {
            footer.push(format!("model {}", code(&model.name)));
            let calls = plural(self.spent.calls as usize, "call", "calls");
            footer.push(format!("{} + {} tokens in {calls}", self.spent.prompt, self.spent.completion));
        }
        if self.dropped > 0 {
            let count = plural(self.dropped, "finding", "findings");
            footer.push(format!("{count} of the model named no line of the diff"));
        }
        let took_ms = self.services.now_ms().saturating_sub(self.began_ms);
        footer.push(format!("{}.{} s", took_ms / 1000, took_ms % 1000 / 100));
        footer
    }

    /// Keeps the review, then shows it.
    fn finish(&mut self, view: &View) -> Result<Json, Failure> {
        let key = self.target.key();
        self.concluded = true;
        self.services.set(&format!("body/{key}"), &comment::render(view), FORGET_MS)?;
        self.memory.head = self.head.clone();
        if let Cause::Asked { comment, .. } = self.target.cause {
            self.memory.asked = self.memory.asked.max(comment);
        }
        self.memory.findings = view.earlier.iter().chain(&view.fresh).cloned().collect();
        self.memory.unread = std::mem::take(&mut self.unread).into_iter().collect();
        self.memory.pending = true;
        self.memory.unfinished = false;
        self.memory.save(self.services, &key)?;
        publish(self.services, self.settings, self.target, &mut self.memory)?;
        let line = format!(
            "{key}: reviewed {}: {} new, {} known, {} skipped, {} tokens",
            self.head,
            view.fresh.len(),
            view.earlier.len(),
            view.skipped.len(),
            self.spent.tokens()
        );
        self.services.log(&line);
        Ok(object(vec![
            ("reviewed", text(&self.head)),
            ("comment", self.memory.comment.map_or(Json::Null, number)),
            ("findings", number(view.fresh.len() as u64)),
        ]))
    }
}

/// The line that names a file to the model.
fn named(file: &File) -> String {
    format!("FILE {}\n", file.title())
}

/// Whether these parts have every line of a file that can have a finding.
fn covers(parts: &[Part], at: usize, file: &File) -> bool {
    let pieces: Vec<&Piece> = parts.iter().flat_map(|part| &part.pieces).filter(|piece| piece.file == at).collect();
    let mut lines = file.hunks.iter().flat_map(|hunk| hunk.targets());
    lines.all(|line| pieces.iter().any(|piece| piece.hunk.has(line)))
}

/// Whether a call of so many tokens leaves room for its answer, for what tools find, and for another answer.
fn has_room(tokens: u64, context: u64) -> bool {
    tokens + ANSWER_TOKENS + (TOOL_BYTES as u64 / 2) < context
}

fn is_busy(reply: &Reply) -> bool {
    matches!(reply.status, 429 | 503)
}

/// Whether this one answer failed; the next one may not.
fn went_wrong(reply: &Reply) -> bool {
    matches!(reply.status, 502 | 504)
}

/// An answer of `llm`, but for those that mean that it can't work at all.
fn checked(reply: Reply) -> Result<Reply, Failure> {
    match reply.status {
        502 | 504 => Ok(reply),
        status if status >= 500 || matches!(status, 401 | 403 | 404) => {
            let said = bounded(string(&reply.json, "error"), 200);
            Err(Failure { retry_after_s: reply.retry_after_s, ..Failure::new(format!("llm: {status} {said}")) })
        }
        _ => Ok(reply),
    }
}

/// The bot's comments among those of the pull request, the first one first, each with the commit in its marker.
fn own_comments(
    services: &mut dyn Services, settings: &Settings, target: &Target,
) -> Result<Vec<(u64, String)>, Failure> {
    let login = login(services, settings)?;
    let mut own = Vec::new();
    let path = format!("{}/issues/{}/comments", target.base(), target.number);
    let failed = pages(services, &path, |page| {
        own.extend(elements(page, "comments").iter().filter_map(|one| {
            // Anybody can write the marker: only a comment of the bot's own counts.
            let user = match one.get("user") {
                Some(Json::Text(login)) => login.as_str(),
                Some(user) => string(user, "login"),
                None => "",
            };
            let head = marked_head(string(one, "body")).filter(|_| user.eq_ignore_ascii_case(&login))?;
            Some((integer(one, "id")?, head.to_owned()))
        }));
        true
    })?;
    match failed {
        Some(reply) => found(reply, "the comments").map(|_| own),
        None => Ok(own),
    }
}

/// The sticky comment, and the commit in its marker.
fn locate(
    services: &mut dyn Services, settings: &Settings, target: &Target,
) -> Result<Option<(u64, String)>, Failure> {
    Ok(own_comments(services, settings, target)?.into_iter().next())
}

/// Ends without a review; a comment that still shows one under way says so.
fn nothing<'a>(
    services: &mut dyn Services, target: &Target, mut memory: Memory, why: &'static str,
) -> Result<Begun<'a>, Failure> {
    if let Some(id) = memory.comment.filter(|_| memory.unfinished) {
        let view = View {
            reviewed: memory.head.clone(),
            summary: format!("The review that was under way has ended: {why}."),
            earlier: memory.findings.clone(),
            ..View::default()
        };
        edit(services, target, id, &comment::render(&view))?;
        memory.unfinished = false;
        memory.save(services, &target.key())?;
    }
    Ok(Begun::Nothing(why))
}

fn create(services: &mut dyn Services, target: &Target, body: &str) -> Result<u64, Failure> {
    let path = format!("{}/issues/{}/comments", target.base(), target.number);
    let reply = github(services, "POST", &path, &write(&object(vec![("body", text(body))])))?;
    let made = found(reply, "a comment")?;
    integer(&made, "id").ok_or_else(|| Failure::new("GitHub names no id of the comment"))
}

fn edit(services: &mut dyn Services, target: &Target, id: u64, body: &str) -> Result<Reply, Failure> {
    let path = format!("{}/issues/comments/{id}", target.base());
    github(services, "PATCH", &path, &write(&object(vec![("body", text(body))])))
}

/// Brings the kept review into the comment; one that somebody deleted, or that is another account's, is made anew.
fn publish(
    services: &mut dyn Services, settings: &Settings, target: &Target, memory: &mut Memory,
) -> Result<(), Failure> {
    let key = target.key();
    if let Some(body) = services.get(&format!("body/{key}"))? {
        let gone = match memory.comment {
            Some(id) => {
                let reply = edit(services, target, id, &body)?;
                let gone = matches!(reply.status, 403 | 404 | 410);
                if !gone {
                    found(reply, "the comment")?;
                }
                gone
            }
            None => true,
        };
        if gone {
            memory.comment = None;
            let id = match locate(services, settings, target)? {
                Some((id, _)) => found(edit(services, target, id, &body)?, "the comment").map(|_| id)?,
                None => {
                    memory.posting = true;
                    memory.save(services, &key)?;
                    create(services, target, &body)?
                }
            };
            memory.comment = Some(id);
        }
        if memory.posting {
            // One that GitHub made after all, when nobody waited for its answer any more.
            let others: Vec<u64> = own_comments(services, settings, target)?.into_iter().map(|(id, _)| id).collect();
            for id in others.into_iter().filter(|id| memory.comment != Some(*id)) {
                github(services, "DELETE", &format!("{}/issues/comments/{id}", target.base()), "")?;
            }
            memory.posting = false;
        }
    }
    memory.pending = false;
    memory.save(services, &key)?;
    // If that fails, it is overwritten by the next one, or forgotten.
    let _ = services.delete(&format!("body/{key}"));
    Ok(())
}

/// FNV-1a, to tell one part from another.
fn digest(of: &str) -> u64 {
    of.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
