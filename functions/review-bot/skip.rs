// SPDX-License-Identifier: Apache-2.0
//! Which files are not reviewed, and why.
//!
//! A pattern that ends with `/` is a folder at any depth; one with another `/` is matched with the whole path, where
//! `**` goes across folders; any other is matched with the file's name. `*` and `?` are as in a shell, letters in
//! either case are the same. Of the operator's own patterns, one that begins with `!` has files reviewed after all.

const LOCK: &str = "lock file";
const VENDORED: &str = "vendored";
const GENERATED: &str = "generated";
const BINARY: &str = "binary";
const MINIFIED: &str = "minified";
const CONFIGURED: &str = "skipped by configuration";
/// What may hold secrets is not shown to a model at all.
pub const PRIVATE: &str = "private: may hold secrets, not shown to a model";

const PATTERNS: [(&str, &str); 12] = [
    (
        PRIVATE,
        ".env .env.* *.pem *.key *.p12 *.pfx *.jks *.keystore id_rsa id_dsa id_ecdsa id_ed25519 .netrc .npmrc .pypirc \
         .htpasswd *.kdbx *.asc *.gpg credentials.json .git-credentials .ssh/ .gnupg/ .aws/ *.env .envrc *.ppk \
         *.keytab *.jceks *.ovpn *.tfstate *.tfstate.* *.tfvars *.tfvars.json secrets.y*ml secret.y*ml \
         secrets.json secrets.toml .pgpass .my.cnf .dockercfg .docker/config.json **/.docker/config.json kubeconfig \
         .kube/ .vault-token .vault_pass* .s3cfg service-account*.json client_secret*.json",
    ),
    (
        LOCK,
        "*.lock package-lock.json npm-shrinkwrap.json pnpm-lock.yaml yarn.lock go.sum Package.resolved gradle.lockfile \
         packages.lock.json .terraform.lock.hcl",
    ),
    (VENDORED, "vendor/ vendored/ third_party/ third-party/ node_modules/ bower_components/ Pods/ site-packages/"),
    (MINIFIED, "*.min.js *.min.css *.min.mjs *-min.js *.bundle.js *.map"),
    (
        GENERATED,
        "*_pb2.py *_pb2_grpc.py *_pb2.pyi *.pb.go *.pb.cc *.pb.h *.g.dart *.freezed.dart *.designer.cs *_generated.* \
         *.generated.* *.gen.go zz_generated.* generated/ __generated__/ __snapshots__/ *.snap",
    ),
    (BINARY, "*.png *.jpg *.jpeg *.gif *.webp *.bmp *.ico *.icns *.tif *.tiff *.psd *.svgz *.pdf"),
    (BINARY, "*.zip *.gz *.tgz *.bz2 *.xz *.zst *.7z *.rar *.tar *.jar *.war *.whl *.egg *.deb *.rpm *.dmg *.iso"),
    (BINARY, "*.exe *.dll *.so *.dylib *.a *.o *.obj *.lib *.class *.pyc *.wasm *.bin *.dat *.node"),
    (BINARY, "*.mp3 *.mp4 *.m4a *.wav *.ogg *.flac *.avi *.mov *.mkv *.webm *.woff *.woff2 *.ttf *.otf *.eot"),
    (BINARY, "*.gguf *.onnx *.pt *.pth *.safetensors *.npy *.npz *.parquet *.db *.sqlite *.sqlite3 *.pkl"),
    (BINARY, "*.doc *.docx *.xls *.xlsx *.ppt *.pptx *.odt *.ods"),
    ("dist/ is built", "dist/"),
];

/// The built-in patterns, and the operator's.
pub struct Patterns {
    own: Vec<String>,
}

impl Patterns {
    /// `own` is separated by white space or commas.
    pub fn new(own: &str) -> Patterns {
        let own = own.split(|c: char| c.is_whitespace() || c == ',').filter(|pattern| !pattern.is_empty());
        Patterns { own: own.map(str::to_owned).collect() }
    }

    /// Why a file of that name is not reviewed, if it is not.
    pub fn reason(&self, path: &str) -> Option<&'static str> {
        if self.own(path, true) {
            return None;
        }
        let any = |patterns: &str| patterns.split_whitespace().any(|pattern| matches(pattern, path));
        let built_in = PATTERNS.iter().find(|(_, patterns)| any(patterns)).map(|(reason, _)| *reason);
        built_in.or_else(|| self.own(path, false).then(|| CONFIGURED))
    }

    fn own(&self, path: &str, wanted: bool) -> bool {
        let found = self.own.iter().filter(|pattern| pattern.starts_with('!') == wanted);
        found.map(|pattern| pattern.trim_start_matches('!')).any(|pattern| matches(pattern, path))
    }

    /// Whether no file of that name may be shown to a model.
    pub fn is_private(&self, path: &str) -> bool {
        self.reason(path) == Some(PRIVATE)
    }

    /// Whether a model is kept from a file of that name when it asks for it: private ones, and the operator's.
    pub fn hides(&self, path: &str) -> bool {
        matches!(self.reason(path), Some(PRIVATE | CONFIGURED))
    }
}

/// Why a file with these new lines is not reviewed, if it is not: `(number, text)` of each.
pub fn reason_of_lines<'a>(lines: impl Iterator<Item = (u64, &'a str)>) -> Option<&'static str> {
    for (number, text) in lines {
        let said = text.contains("@generated") || (text.contains("generated") && text.contains("DO NOT EDIT"));
        if number <= 10 && said {
            return Some(GENERATED);
        }
        if text.len() > 5000 {
            return Some(MINIFIED);
        }
    }
    None
}

/// Whether a line begins a private key, wherever it was put.
pub fn is_private_key(line: &str) -> bool {
    line.contains("-----BEGIN ") && line.contains("PRIVATE KEY")
}

/// Whether a line is nothing but base64, as keys have it, perhaps in quotes.
pub fn is_encoded(line: &str) -> bool {
    let line = line.trim_matches(|c: char| c.is_whitespace() || "\"',;+\\".contains(c));
    let line = line.strip_suffix("\\n").unwrap_or(line);
    let has = |of: fn(&u8) -> bool| line.as_bytes().iter().any(of);
    line.len() >= 60
        && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.to_lowercase(), path.to_lowercase());
    if let Some(folder) = pattern.strip_suffix('/') {
        let folder = folder.trim_start_matches('/');
        let inside = |at: usize| at == 0 || path.as_bytes()[at - 1] == b'/';
        return path.match_indices(&format!("{folder}/")).any(|(at, _)| inside(at));
    }
    if pattern.contains('/') {
        return glob(pattern.trim_start_matches('/'), &path);
    }
    glob(&pattern, path.rsplit('/').next().unwrap_or(&path))
}

/// By the table of what each prefix of the pattern matches, so that no pattern takes longer than the product of both.
fn glob(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; text.len() + 1];
        let across = pattern[at] == '*' && pattern.get(at + 1) == Some(&'*');
        if pattern[at] == '*' {
            for end in 0..=text.len() {
                next[end] = reached[end] || (end > 0 && next[end - 1] && (across || text[end - 1] != '/'));
            }
            at += if across { 2 } else { 1 };
            // `**/` may be nothing at all.
            if across && pattern.get(at) == Some(&'/') {
                for end in 0..=text.len() {
                    next[end] = reached[end] || (end > 0 && text[end - 1] == '/' && next[end]);
                }
                at += 1;
            }
        } else {
            for end in 1..=text.len() {
                let fits = pattern[at] == text[end - 1] || (pattern[at] == '?' && text[end - 1] != '/');
                next[end] = reached[end - 1] && fits;
            }
            at += 1;
        }
        reached = next;
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_has_its_reason() {
        let patterns = Patterns::new("");
        for (path, reason) in [
            ("package-lock.json", LOCK),
            ("web/yarn.lock", LOCK),
            ("Cargo.lock", LOCK),
            ("vendor/x/y.go", VENDORED),
            ("a/Node_Modules/x.js", VENDORED),
            ("static/app.min.js", MINIFIED),
            ("api/v1_pb2.py", GENERATED),
            ("img/LOGO.PNG", BINARY),
            ("model.gguf", BINARY),
            (".env", PRIVATE),
            ("conf/.env.production", PRIVATE),
            ("tls/server.key", PRIVATE),
            ("prod.env", PRIVATE),
            ("a/.docker/config.json", PRIVATE),
            ("infra/terraform.tfstate.backup", PRIVATE),
            ("conf/Secrets.yaml", PRIVATE),
        ] {
            assert_eq!(patterns.reason(path), Some(reason), "{path}");
        }
        for path in ["src/main.py", "vendors.py", "lock.py", "environment", "src/vendor.rs", "\u{e4}/\u{f6}.txt", ""] {
            assert_eq!(patterns.reason(path), None, "{path}");
        }
        assert!(patterns.is_private("a/.ENV") && !patterns.is_private("a.py"));
        assert!(patterns.hides(".env") && !patterns.hides("Cargo.lock") && Patterns::new("in/").hides("in/a.py"));
    }

    #[test]
    fn the_operators_patterns_come_first() {
        let patterns = Patterns::new("docs/** *.txt, !package-lock.json  legacy/ a?c");
        for (path, skipped) in [
            ("docs/a/b.md", true),
            ("x/docs/a.md", false),
            ("notes.TXT", true),
            ("src/legacy/x.py", true),
            ("legacy.py", false),
            ("abc", true),
            ("package-lock.json", false),
        ] {
            assert_eq!(patterns.reason(path).is_some(), skipped, "{path}");
        }
    }

    #[test]
    fn encoded_bytes_are_told_from_code() {
        let key = "MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun";
        for line in [key.to_owned(), format!("    \"{key}\\n\""), format!("{key}\\n")] {
            assert!(is_encoded(&line), "{line}");
        }
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for line in ["x = 1", &"a".repeat(80), hash, &format!("let key = \"{key}\";")] {
            assert!(!is_encoded(line), "{line}");
        }
    }

    #[test]
    fn stars_stay_in_their_folder() {
        for (pattern, path, fits) in [
            ("a/*.c", "a/b.c", true),
            ("a/*.c", "a/b/c.c", false),
            ("a/**/c.c", "a/c.c", true),
            ("a/**/c.c", "a/x/y/c.c", true),
            ("a/**/c.c", "a/xc.c", false),
            ("**/t.c", "t.c", true),
            ("/a/b", "a/b", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, path), fits, "{pattern} {path}");
        }
        assert!(!glob(&"*a".repeat(200), &"a".repeat(199)), "and that at once");
    }

    #[test]
    fn lines_tell_what_was_generated_or_minified() {
        assert_eq!(reason_of_lines([(1, "// Code generated by x. DO NOT EDIT.")].into_iter()), Some(GENERATED));
        assert_eq!(reason_of_lines([(50, "@generated")].into_iter()), None);
        assert_eq!(reason_of_lines([(70, "x".repeat(6000).as_str())].into_iter()), Some(MINIFIED));
    }
}
