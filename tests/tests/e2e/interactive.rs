//! Exec for clients that use the streams: output, input, terminals, exits.

use crate::client::Client;
use crate::daemon::process_with;
use crate::streams::{ALL, OUTPUT, SPEECHES, Session, Speech, TERMINAL};
use crate::world::{run, until};

use wharf_types::StreamOptions;

/// A pod with an idle container.
async fn idle(client: &Client) -> String {
    let pod = client.run(&client.pod("interactive")).await.unwrap();
    client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap()
}

/// More than all the buffers between a command and its client hold.
const LARGE: usize = 20 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect()
}

#[test]
fn all_output_comes_before_the_status() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        client.output(&id, "seq 1 400000 > /blob").await;
        let blob: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
        for speech in SPEECHES {
            for round in 0..12 {
                let script = "cat /blob & cat /blob >&2; wait; exit 7";
                let ended = Session::exec(client, speech, &id, script, OUTPUT).await.ended().await;
                assert!(
                    ended.stdout == blob.as_bytes() && ended.stderr == blob.as_bytes(),
                    "{round}: {ended:?}"
                );
                assert_eq!(ended.code(), 7);
            }
            for round in 0..40 {
                let script = format!("head -c 65536 /blob; echo {round} >&2; exit {round}");
                let ended = Session::exec(client, speech, &id, &script, OUTPUT).await.ended().await;
                assert!(ended.stdout == blob.as_bytes()[..65_536], "{ended:?}");
                assert_eq!((ended.code(), ended.stderr), (round, format!("{round}\n").into_bytes()));
            }
        }
    });
}

#[test]
fn the_status_tells_the_end() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        for speech in SPEECHES {
            let ends = [
                ("exit 0", 0),
                ("exit 1", 1),
                ("exit 255", 255),
                ("kill -KILL $$", 137),
                ("kill -TERM $$", 143),
            ];
            for (script, code) in ends {
                let ended = Session::exec(client, speech, &id, script, ALL).await.ended().await;
                assert_eq!((ended.code(), ended.text()), (code, String::new()), "{script}");
            }
            for program in ["/no/such/program", "/etc/passwd"] {
                let url = client.exec_url(&id, &[program], ALL).await.unwrap();
                let ended = Session::open(&url, speech, ALL).await.ended().await;
                assert!(ended.failure().is_some_and(|why| why.contains(program)), "{ended:?}");
            }
            let nothing = StreamOptions { stdin: false, stdout: true, stderr: false, terminal: false };
            let ended = Session::exec(client, speech, &id, "cat; echo end; echo unseen >&2", nothing)
                .await
                .ended()
                .await;
            assert_eq!(
                (ended.code(), &*ended.text()),
                (0, "end\n"),
                "input that was not asked for is at its end"
            );
        }
    });
}

#[test]
fn input_arrives_and_ends() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        let sent = pattern(LARGE);
        for speech in SPEECHES {
            let mut session = Session::exec(client, speech, &id, "cat", ALL).await;
            session.send(&sent).await.unwrap();
            session.end_input().await.unwrap();
            let ended = session.ended().await;
            assert!(ended.code() == 0 && ended.stdout == sent, "{ended:?}");

            let silent = StreamOptions { stdout: false, stderr: false, ..ALL };
            let mut session = Session::exec(client, speech, &id, "cat > /file; exit 2", silent).await;
            session.send(b"kept").await.unwrap();
            session.end_input().await.unwrap();
            assert_eq!(session.ended().await.code(), 2);
            assert_eq!(client.output(&id, "cat /file").await, "kept");

            // The client has sent everything long before the command reads.
            let script = "until [ -e /go ]; do sleep 0.01; done; wc -c; seq 1 3; exit 6";
            let mut session = Session::exec(client, speech, &id, script, ALL).await;
            let say = async {
                session.send(&sent[..LARGE / 4]).await.unwrap();
                session.end_input().await.unwrap();
            };
            tokio::join!(say, client.output(&id, "touch /go"));
            let ended = session.ended().await;
            assert_eq!((ended.code(), ended.text()), (6, format!("{}\n1\n2\n3\n", LARGE / 4)));
            client.output(&id, "rm /go").await;
        }
    });
}

#[test]
fn input_that_nobody_reads_holds_up_nothing() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        let sent = pattern(LARGE);
        let lines: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        for speech in SPEECHES {
            for (script, output) in [
                ("head -c 10; exit 5", &sent[..10]),
                ("exec <&-; seq 1 100000; exit 5", lines.as_bytes()),
                // It never reads, and exits while its input waits.
                ("seq 1 100000; exit 5", lines.as_bytes()),
            ] {
                let mut session = Session::exec(client, speech, &id, script, ALL).await;
                // A client may learn that its command has exited from a message that can no longer be sent.
                session.send(&sent).await.and(session.end_input().await).ok();
                let ended = session.ended().await;
                assert!(ended.code() == 5 && ended.stdout == output, "{script}: {ended:?}");
            }
        }
    });
}

#[test]
fn a_terminal_has_its_clients_size_from_the_beginning() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        for _ in 0..50 {
            let url = client.exec_url(&id, &["stty", "size"], TERMINAL).await.unwrap();
            let ended = Session::open(&url, Speech::Spdy, TERMINAL).await.ended().await;
            assert_eq!((ended.code(), &*ended.text()), (0, "24 80\r\n"));
        }
    });
}

#[test]
fn a_terminal_follows_its_client() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        for speech in SPEECHES {
            let script = "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; tty; while :; do sleep 0.01; done";
            let mut session = Session::exec(client, speech, &id, script, TERMINAL).await;
            session.until("/dev/pts/").await;
            for (width, height) in [(132, 43), (80, 24)] {
                session.resize(width, height).await;
                session.until(&format!("{height} {width}\r\n")).await;
            }
            session.send(b"\x03").await.unwrap();
            let ended = session.ended().await;
            assert!(ended.code() == 3 && ended.text().ends_with("interrupted\r\n"), "{ended:?}");

            let mut session =
                Session::exec(client, speech, &id, "stty -echo; echo ready; cat; echo end", TERMINAL).await;
            session.until("ready").await;
            session.send(b"line\n\x04").await.unwrap();
            let ended = session.ended().await;
            assert_eq!((ended.code(), &*ended.text()), (0, "ready\r\nline\r\nend\r\n"));

            let session = Session::exec(client, speech, &id, "seq 1 50000; exit 9", TERMINAL).await;
            let ended = session.ended().await;
            let lines: String = (1..=50_000).map(|n| format!("{n}\r\n")).collect();
            assert!(ended.code() == 9 && ended.text() == lines, "{ended:?}");
        }
    });
}

#[test]
fn a_client_that_leaves_takes_its_command_along() {
    run(async |world| {
        let client = &world.client;
        let id = idle(client).await;
        let script = "trap '' HUP INT TERM; sleep 1001 & setsid sleep 1002 & (sleep 1003; true) & echo on; while :; do sleep 1; done";
        for speech in SPEECHES {
            for (wanted, crash) in [(ALL, false), (ALL, true), (TERMINAL, false), (TERMINAL, true)] {
                let session = Session::exec(client, speech, &id, script, wanted).await;
                session.until("on").await;
                for sleeper in ["sleep 1001", "sleep 1002", "sleep 1003"] {
                    until("it runs", async || process_with(sleeper)).await;
                }
                if crash {
                    session.reset();
                } else {
                    drop(session);
                }
                for process in ["sleep 1001", "sleep 1002", "sleep 1003", "trap '' HUP"] {
                    until("it is killed", async || process_with(process).is_none().then_some(())).await;
                }
            }
        }
        assert_eq!(client.output(&id, "echo fine").await, "fine", "the container is not touched");
    });
}
