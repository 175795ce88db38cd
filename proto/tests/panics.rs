//! What is said of panics. In a process of its own, since the hook is the whole process's.

use std::{
    io,
    panic::catch_unwind,
    sync::{Arc, Mutex},
};

use drizzle_proto::panics;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_one_line_of_the_log_and_an_expected_one_is_none() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    panics::log();
    tracing::subscriber::with_default(subscriber, || {
        let told = panics::expected(|| panic!("of a damaged {}", "page"));
        assert_eq!(told, Err("of a damaged page".to_owned()));
        assert_eq!(panics::expected(|| 7), Ok(7));
        assert_eq!(log.text(), "", "its caller tells, whatever RUST_BACKTRACE says");

        assert!(catch_unwind(|| panic!("a bug")).is_err());
        let said = log.text();
        assert!(said.contains("internal error: panicked: a bug") && said.contains("panics.rs:"), "{said}");
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    });
}
