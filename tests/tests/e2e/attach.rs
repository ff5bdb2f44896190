//! Attach: many clients of one container, clients that do not keep up, that leave and return, and the container's end.

use futures_util::future::join_all;
use tonic::Code;
use wharf_cri_api::v1::ContainerConfig;
use wharf_types::StreamOptions;

use crate::client::Client;
use crate::streams::{ALL, OUTPUT, SPEECHES, Session, Speech, TERMINAL};
use crate::world::{run, until};

/// Writes 256 KiB each time it is told to.
const BLOCKS: &str = "yes 1234567 | head -n 32768 > /blob; echo ready; \
                      while read -r word; do echo \"$word\"; [ \"$word\" = end ] && exit 5; cat /blob; done";
const BLOCK: usize = 256 * 1024;

/// A container that reads what its clients write.
fn reader(client: &Client, name: &str, script: &str) -> ContainerConfig {
    ContainerConfig { stdin: true, ..client.container(name, script) }
}

/// The same, as `kubectl run -i` makes it: its input ends with that of the first client.
fn reader_once(client: &Client, name: &str, script: &str) -> ContainerConfig {
    ContainerConfig { stdin_once: true, ..reader(client, name, script) }
}

#[test]
fn all_clients_get_the_same() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("same")).await.unwrap();
        let script = "while read -r word; do echo \"$word\"; echo \"not $word\" >&2; done; exit 4";
        let id = client.launch(&pod, &reader_once(client, "main", script)).await.unwrap();
        let mut writer = Session::attach(client, Speech::Spdy, &id, ALL).await;
        let mut clients = Vec::new();
        for number in 0..10 {
            clients.push(Session::attach(client, SPEECHES[number % 2], &id, OUTPUT).await);
        }
        // A client is known to be attached once it has received something.
        for session in &clients {
            let sees = async || {
                writer.send(b"early\n").await.unwrap();
                session.has("early\n").then_some(())
            };
            until("a client is attached", sees).await;
        }
        for number in 0..2000 {
            writer.send(format!("{number}\n").as_bytes()).await.unwrap();
        }
        writer.end_input().await.unwrap();
        let lines = |not: &str| (0..2000).map(|number| format!("{not}{number}\n")).collect::<String>();
        let (stdout, stderr) = (lines("").into_bytes(), lines("not ").into_bytes());
        clients.push(writer);
        for ended in join_all(clients.into_iter().map(Session::ended)).await {
            let same = ended.stdout.ends_with(&[b"early\n", &*stdout].concat());
            assert!(same && ended.stderr.ends_with(&[b"not early\n", &*stderr].concat()), "{ended:?}");
            assert_eq!(ended.code(), 4);
        }
    });
}

#[test]
fn a_terminal_without_input_takes_none() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("no-input")).await.unwrap();
        let script = "echo ready; read -r -t 3 word || word=nothing; echo \"got $word\"";
        let container = ContainerConfig { tty: true, ..client.container("main", script) };
        let id = client.create(&pod, &container).await.unwrap();
        client.start(&id).await.unwrap();
        let mut session = Session::attach(client, Speech::WebSocket, &id, TERMINAL).await;
        // It is already over if the other side accepts no input at all.
        session.send(b"word\n").await.unwrap_or_default();
        session.until("got nothing").await;
        assert!(!session.has("word"), "not even an echo");
    });
}

#[test]
fn a_client_that_does_not_read_is_left_behind() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("slow")).await.unwrap();
        for speech in SPEECHES {
            let name = format!("{speech:?}");
            let id = client.launch(&pod, &reader(client, &name, BLOCKS)).await.unwrap();
            let mut session = Session::attach(client, speech, &id, ALL).await;
            session.send(b"first\n").await.unwrap();
            session.until("first\n").await;
            let url = client.attach_url(&id, OUTPUT).await.unwrap();
            let mut deaf = Session::deaf(&url, speech, OUTPUT).await;
            // More than all the buffers between the container and a client hold.
            let mut bytes = 0;
            for number in 0..80 {
                bytes += BLOCK;
                session.send(format!("{number}\n").as_bytes()).await.unwrap();
                session.until_bytes(bytes).await;
            }
            deaf.listen().await;
            let left = deaf.ended().await;
            assert!(left.failure().is_some_and(|why| why.contains("bytes behind")), "{left:?}");
            session.send(b"end\n").await.unwrap();
            let ended = session.ended().await;
            assert!(ended.text().ends_with("\nend\n"), "{ended:?}");
            assert!(!left.stdout.is_empty() && left.stdout.len() < 80 * BLOCK, "{left:?}");
            assert!(ended.text().contains(&left.text()), "there are no gaps up to there");
            assert_eq!(ended.code(), 5);
        }
    });
}

#[test]
fn input_ends_with_its_client_or_stays() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("input")).await.unwrap();
        let script =
            "while read -r word; do echo \"$word\"; done; echo over; until [ -e /end ]; do sleep 0.01; done";
        for speech in SPEECHES {
            let name = format!("once-{speech:?}");
            let id = client.launch(&pod, &reader_once(client, &name, script)).await.unwrap();
            let mut first = Session::attach(client, speech, &id, ALL).await;
            first.send(b"one\n").await.unwrap();
            first.until("one\n").await;
            let second = Session::attach(client, speech, &id, OUTPUT).await;
            first.end_input().await.unwrap();
            first.until("over").await;
            // There is no more input, but the output can still be watched.
            let mut third = Session::attach(client, speech, &id, ALL).await;
            third.send(b"nobody reads it\n").await.ok();
            client.output(&id, "touch /end").await;
            for session in [first, second, third] {
                let ended = session.ended().await;
                assert!(ended.code() == 0 && !ended.text().contains("nobody"), "{ended:?}");
            }

            let name = format!("kept-{speech:?}");
            let id = client.launch(&pod, &reader(client, &name, script)).await.unwrap();
            for round in 0..4 {
                let mut session = Session::attach(client, speech, &id, ALL).await;
                let word = format!("round {round}\n");
                session.send(word.as_bytes()).await.unwrap();
                session.until(&word).await;
                match round {
                    0 => drop(session),
                    1 => session.reset(),
                    _ => session.end_input().await.unwrap(),
                }
            }
            let mut last = Session::attach(client, speech, &id, ALL).await;
            last.send(b"still open\n").await.unwrap();
            last.until("still open\n").await;
            client.stop_container(&id, 0).await.unwrap();
            let ended = last.ended().await;
            assert_eq!((ended.code(), ended.text().contains("over")), (137, false), "{ended:?}");
        }
    });
}

#[test]
fn a_crashed_client_ends_the_input_that_was_its() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("crashed")).await.unwrap();
        for speech in SPEECHES {
            let config = reader_once(client, &format!("{speech:?}"), "cat; exit 4");
            let id = client.launch(&pod, &config).await.unwrap();
            let mut session = Session::attach(client, speech, &id, ALL).await;
            session.send(b"one\n").await.unwrap();
            session.until("one\n").await;
            session.reset();
            assert_eq!(client.exited(&id).await.exit_code, 4);
        }
    });
}

#[test]
fn a_containers_terminal_follows_its_clients() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("terminal")).await.unwrap();
        for speech in SPEECHES {
            let script = "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; touch /ready; \
                          while :; do sleep 0.01; done";
            let config = ContainerConfig { tty: true, ..reader(client, &format!("{speech:?}"), script) };
            let id = client.launch(&pod, &config).await.unwrap();
            client.output(&id, "until [ -e /ready ]; do sleep 0.01; done").await;
            for (width, height) in [(132, 43), (80, 24)] {
                let mut session = Session::attach(client, speech, &id, TERMINAL).await;
                session.resize(width, height).await;
                session.until(&format!("{height} {width}\r\n")).await;
            }
            let mut session = Session::attach(client, speech, &id, TERMINAL).await;
            session.send(b"\x03").await.unwrap();
            let ended = session.ended().await;
            assert!(ended.text().ends_with("interrupted\r\n"), "{ended:?}");
            assert_eq!(ended.code(), 3);
        }
    });
}

#[test]
fn a_container_has_room_for_so_many_clients() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("room")).await.unwrap();
        let script = "while :; do echo on; sleep 0.05; done";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let attach = async |number: usize| Session::attach(client, SPEECHES[number % 2], &id, OUTPUT).await;
        let mut clients = join_all((0..64).map(attach)).await;
        for session in &clients {
            session.until("on").await;
        }
        let ended = attach(64).await.ended().await;
        assert!(ended.failure().is_some_and(|why| why.contains("has 64 attached clients")), "{ended:?}");
        clients.pop().unwrap().reset();
        until("there is room again", async || {
            let session = attach(65).await;
            let served = async || (session.has("on") || session.is_over()).then_some(());
            until("it is served or refused", served).await;
            session.has("on").then_some(())
        })
        .await;
    });
}

#[test]
fn what_has_ended_cannot_be_attached_to() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("not")).await.unwrap();
        let id = client.create(&pod, &client.container("main", "read -r word; exit 3")).await.unwrap();
        let refused = |what: Result<String, tonic::Status>| {
            let error = what.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        };
        // The streams exist before the start, so a client that is attached by then misses nothing.
        client.attach_url(&id, OUTPUT).await.unwrap();
        refused(client.exec_url(&id, &["true"], OUTPUT).await);
        client.start(&id).await.unwrap();
        client.exited(&id).await;
        refused(client.attach_url(&id, OUTPUT).await);
        refused(client.exec_url(&id, &["true"], OUTPUT).await);
        assert_eq!(client.attach_url("nobody", OUTPUT).await.unwrap_err().code(), Code::NotFound);

        let id = client.launch(&pod, &client.container("next", "sleep 1000")).await.unwrap();
        let nothing = StreamOptions { stdin: false, stdout: false, stderr: false, terminal: false };
        let both = StreamOptions { stderr: true, ..TERMINAL };
        for wanted in [nothing, both] {
            assert_eq!(client.attach_url(&id, wanted).await.unwrap_err().code(), Code::InvalidArgument);
        }
        // It exits between the request for the URL and its use.
        let urls =
            [client.attach_url(&id, OUTPUT).await.unwrap(), client.attach_url(&id, OUTPUT).await.unwrap()];
        client.stop_container(&id, 0).await.unwrap();
        for (url, speech) in urls.iter().zip(SPEECHES) {
            let ended = Session::open(url, speech, OUTPUT).await.ended().await;
            assert!(ended.failure().is_some_and(|why| why.contains("is exited")), "{ended:?}");
        }
    });
}

#[test]
fn attaching_at_the_moment_of_the_end_ends() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("moment")).await.unwrap();
        for round in 0..30 {
            let config = reader(client, &format!("c{round}"), "read -r word; echo last words; exit 4");
            let id = client.launch(&pod, &config).await.unwrap();
            let mut writer = Session::attach(client, SPEECHES[round % 2], &id, ALL).await;
            let urls = join_all((0..6).map(|_| client.attach_url(&id, OUTPUT))).await;
            let watchers = join_all(urls.into_iter().enumerate().map(|(number, url)| async move {
                let speech = SPEECHES[(round + number) % 2];
                Session::open(&url.unwrap(), speech, OUTPUT).await.ended().await
            }));
            let (sent, watched) = tokio::join!(writer.send(b"go\n"), watchers);
            sent.unwrap();
            for ended in watched {
                let fine = ended.exit() == Some(4) && ["", "last words\n"].contains(&&*ended.text());
                let late = ended
                    .failure()
                    .is_some_and(|why| why.contains("is exited") || why.contains("does not run"));
                assert!(fine || late, "{ended:?}");
            }
            let ended = writer.ended().await;
            assert_eq!((ended.code(), &*ended.text()), (4, "last words\n"));
        }
    });
}
