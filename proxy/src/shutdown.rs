//! SIGTERM and SIGINT: everyone is told once, and finishes what it has begun.

use tokio::sync::watch;

/// Tells everyone to end.
pub(crate) struct Shutdown(watch::Sender<bool>);

/// Learns that it is time to end.
#[derive(Clone)]
pub(crate) struct ShutdownReceiver(watch::Receiver<bool>);

impl Shutdown {
    pub(crate) fn new() -> (Shutdown, ShutdownReceiver) {
        let (sender, receiver) = watch::channel(false);
        (Shutdown(sender), ShutdownReceiver(receiver))
    }

    pub(crate) fn request(&self) {
        self.0.send_replace(true);
    }
}

impl ShutdownReceiver {
    /// Resolves when the process is asked to end.
    pub(crate) async fn requested(&mut self) {
        if self.0.wait_for(|ending| *ending).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
