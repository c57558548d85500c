//! Tasks and threads that must live.
//!
//! Arrives: what a daemon does for as long as it runs, each by its name. Leaves: a word when one of them ends
//! before it was asked to. Always holds: nothing that a daemon needs can end unseen; whoever hears of it stops
//! the rest and ends with an error.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle as TaskHandle;
use tokio_util::sync::CancellationToken;

/// What has ended before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: &'static str,
    /// What happened, in words.
    pub what: String,
}

/// Watches tasks and threads.
#[derive(Debug, Clone)]
pub struct Supervisor {
    ended: mpsc::UnboundedSender<Failure>,
    stop: CancellationToken,
}

/// Where failures are heard of.
#[derive(Debug)]
pub struct Ended(mpsc::UnboundedReceiver<Failure>);

impl Ended {
    /// Waits for one.
    pub async fn next(&mut self) -> Failure {
        match self.0.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// One that has ended already.
    pub fn now(&mut self) -> Option<Failure> {
        self.0.try_recv().ok()
    }
}

/// A supervisor of what runs until `stop`.
pub fn supervisor(stop: CancellationToken) -> (Supervisor, Ended) {
    // One word for each thing that ends: as many as there are names.
    let (ended, words) = mpsc::unbounded_channel();
    (Supervisor { ended, stop }, Ended(words))
}

impl Supervisor {
    fn tell(&self, name: &'static str, what: String) {
        let _ = self.ended.send(Failure { name, what });
    }

    /// Runs a task that ends only when it is stopped.
    pub fn task(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle<()> {
        self.watch(name, true, task)
    }

    /// Runs a task that may be done some day, but not panic.
    pub fn errand(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle<()> {
        self.watch(name, false, task)
    }

    fn watch(
        &self,
        name: &'static str,
        for_ever: bool,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle<()> {
        let watch = self.clone();
        tokio::spawn(async move {
            let inner = tokio::spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = injected(name) => panic!("a test has asked for it"),
                }
            });
            match inner.await {
                Err(e) if e.is_panic() => watch.tell(name, format!("{name} panicked; see the log")),
                Ok(()) if for_ever && !watch.stop.is_cancelled() => watch.tell(name, format!("{name} ended")),
                _ => {}
            }
        })
    }

    /// Starts a thread that ends only when it is stopped.
    pub fn thread<E: Display>(
        &self,
        name: &'static str,
        run: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let stop = self.stop.clone();
        self.follower(name, move || match run() {
            Ok(()) if !stop.is_cancelled() => Err(format!("the {name} thread ended")),
            Ok(()) => Ok(()),
            Err(e) => Err(e.to_string()),
        })
    }

    /// Starts a thread that ends with another, whose end is told; its failure, also a panic, is told too.
    pub fn follower<E: Display>(
        &self,
        name: &'static str,
        run: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        struct Watch(&'static str, Supervisor);
        impl Drop for Watch {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.1.tell(self.0, format!("the {} thread panicked; see the log", self.0));
                }
            }
        }
        let watch = Watch(name, self.clone());
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let watch = watch;
            if let Err(e) = run() {
                watch.1.tell(watch.0, e.to_string());
            }
        })
    }
}

/// Ends a while after the start for the task that a test names, and never for any other.
async fn injected(name: &str) {
    if std::env::var("TIDEGATE_TEST_PANIC").is_ok_and(|at| at == name) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    } else {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_before_its_time_is_told_by_its_name() {
        let stop = CancellationToken::new();
        let (supervisor, mut ended) = supervisor(stop.clone());
        supervisor.errand("errand", async {}).await.unwrap();
        supervisor.task("quitter", async {}).await.unwrap();
        assert_eq!(ended.next().await.what, "quitter ended");
        supervisor.errand("careless", async { panic!("on purpose") }).await.unwrap();
        assert_eq!(ended.next().await.what, "careless panicked; see the log");
        supervisor.thread("failing", || Err::<(), _>("no luck")).unwrap().join().unwrap();
        assert_eq!(ended.next().await.what, "no luck");
        supervisor.thread("done", || Ok::<(), String>(())).unwrap().join().unwrap();
        assert_eq!(ended.next().await.what, "the done thread ended");
        let panicking = supervisor.thread("panicking", || -> Result<(), String> { panic!("on purpose") }).unwrap();
        assert!(panicking.join().is_err());
        assert_eq!(ended.next().await.what, "the panicking thread panicked; see the log");
        stop.cancel();
        supervisor.task("stopped", async {}).await.unwrap();
        assert_eq!(ended.now(), None);
    }
}
