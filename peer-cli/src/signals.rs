//! Ctrl-C and SIGTERM: the first asks the command to end, the second ends the process at once, even
//! when it hangs in a write to a reader that does not read.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::exit::Exit;

/// Tells when the person has had enough.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts(watch::Receiver<Option<Exit>>);

impl Interrupts {
    /// Takes over both signals.
    pub(crate) fn listen() -> io::Result<Self> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let exit = tokio::select! {
                    _ = interrupt.recv() => Exit::Interrupted,
                    _ = terminate.recv() => Exit::Terminated,
                };
                if sender.send_replace(Some(exit)).is_some() {
                    std::process::exit(exit.code().into());
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal; at once if it has come already.
    pub(crate) async fn next(&mut self) -> Exit {
        match self.0.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The listening task never ends before the process does.
            _ => std::future::pending().await,
        }
    }
}
