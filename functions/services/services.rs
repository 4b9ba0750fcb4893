// SPDX-License-Identifier: Apache-2.0
//! Every operation of `faas_v1`, as services.c without a query, with the same output
//! but for what closing twice comes to: here handles are dropped, once.

use faas::v1::{config, secret, wait_any, Error, Incoming, Outgoing, Store};

fn note<T>(what: &str, result: Result<T, Error>) {
    match result {
        Ok(_) => println!("{what}: ok"),
        Err(error) => println!("{what}: {error}"),
    }
}

fn note_value(what: &str, result: Result<String, Error>) {
    match result {
        Ok(value) => println!("{what}: {value}"),
        Err(error) => println!("{what}: {error}"),
    }
}

fn there<T>(found: Result<Option<T>, Error>) -> Result<T, Error> {
    found.and_then(|value| value.ok_or(Error::NOT_FOUND))
}

fn same(done: Result<bool, Error>, otherwise: Error) -> Result<(), Error> {
    done.and_then(|done| if done { Ok(()) } else { Err(otherwise) })
}

fn get(store: &Store) {
    note_value("get", there(store.get("k")).map(|value| String::from_utf8(value).unwrap()));
}

fn keys_and_values() -> Result<(), Error> {
    let store = Store::open("default")?;
    println!("open: ok");
    note("open another", Store::open("another"));
    get(&store);
    note("set", store.set("k", b"v1"));
    get(&store);
    note("set for a while", store.set_for("temp", b"gone", 1000));
    note("compare with nothing", same(store.compare_and_set("k", None, b"v2"), Error::CONFLICT));
    note("compare with v0", same(store.compare_and_set("k", Some(b"v0"), b"v2"), Error::CONFLICT));
    note("compare with v1", same(store.compare_and_set("k", Some(b"v1"), b"v2"), Error::CONFLICT));
    get(&store);
    note("increment a text", store.increment("k", 1));
    note("increment", store.increment("n", 5));
    println!("increment: {} ok", store.increment("n", -7)?);
    let mut cursor = String::new();
    loop {
        let (keys, next) = store.list("", &cursor, 2)?;
        println!("list: {} (ok)", keys.join(" "));
        cursor = next;
        if cursor.is_empty() {
            break;
        }
    }
    note("delete", same(store.delete("k"), Error::NOT_FOUND));
    note("delete", same(store.delete("k"), Error::NOT_FOUND));
    note("set nothing", store.set("", b""));
    Ok(())
}

fn settings() {
    note_value("config", there(config("MODE")));
    note_value("config", there(config("NONE")));
    note_value("secret", secret("KEY"));
    note_value("secret", secret("OTHER"));
}

fn answer(what: &str, incoming: &Incoming) -> Result<(), Error> {
    let head = incoming.head()?;
    let body = String::from_utf8(incoming.body()?).unwrap();
    println!("{what}: {} {} {body}", head.status, head.header("X-Method").unwrap_or("-"));
    Ok(())
}

fn requests() -> Result<(), Error> {
    let slow = Outgoing::get("https://a.test/slow").send()?;
    println!("http: ok");
    let quick = Outgoing::new("POST", "https://a.test/quick").header("x-a", "b").body(b"hello").send()?;
    println!("http: ok");
    let first = wait_any(&[&slow, &quick], None)?;
    println!("first: ok {}", if first == 1 { "quick" } else { "slow" });
    answer("quick", &quick)?;
    note("wait", wait_any(&[&slow], Some(0)));
    drop(slow);
    let called = Outgoing::to("callee", "GET", "/x").qualifier("live").body(b"in");
    let incoming = called.call()?;
    println!("call: ok");
    answer("call", &incoming)?;
    note("call unknown", Outgoing::to("unknown", "GET", "").call());
    let job = called.idempotency_key("once").delay_ms(10);
    note_value("job", job.enqueue());
    note_value("job", job.enqueue());
    Ok(())
}

fn main() {
    println!("Content-Type: text/plain\n");
    let all = keys_and_values().and_then(|()| {
        settings();
        requests()
    });
    if let Err(error) = all {
        println!("{error}");
    }
}
