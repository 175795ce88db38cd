//! Tells another peer which chunks of a file are held here, as they come. When is decided by [`drizzle_engine::telling`].

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use drizzle_engine::telling::News;
use drizzle_proto::{ChunkSet, FileId, wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::ServeError;
use crate::holdings::{Holdings, ReadError, Scarce};

/// Peers that may listen at once: far more than a peer has neighbours.
const MOST: usize = 1024;

/// The peers that listen.
#[derive(Debug, Clone)]
pub(crate) struct NewsDesk {
    holdings: Arc<Holdings>,
    listeners: Arc<AtomicUsize>,
    /// Whether no upload slot is taken.
    idle: watch::Receiver<bool>,
    stop: CancellationToken,
}

/// Counts a listener for as long as it listens.
struct Listener(Arc<AtomicUsize>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Message = Result<wire::WatchChunksResponse, Status>;

impl NewsDesk {
    /// Tells of these holdings until the daemon stops, the sooner while it uploads nothing.
    pub(crate) fn new(holdings: Arc<Holdings>, idle: watch::Receiver<bool>, stop: CancellationToken) -> Self {
        Self { holdings, listeners: Arc::default(), idle, stop }
    }

    /// The messages for one peer, from a task that ends with the stream, with the file, or when the daemon stops.
    pub(crate) fn open(&self, file: FileId) -> Result<ReceiverStream<Message>, ServeError> {
        let listener = Listener(self.listeners.clone());
        if self.listeners.fetch_add(1, Ordering::Relaxed) >= MOST {
            return Err(ServeError::Listeners(MOST));
        }
        // In this order no chunk comes unheard between the two.
        let bell = self.holdings.listen(file);
        let (held, _) = self.holdings.chunks_of(file).ok_or(ReadError::UnknownFile(file))?;
        let (sender, messages) = mpsc::channel(1);
        let (desk, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(async move {
            // Counted for as long as it listens.
            let _listener = listener;
            let end = tokio::select! {
                end = desk.tell(file, held, bell, &sender) => end,
                () = stop.cancelled() => Some(ServeError::Stopping),
                () = sender.closed() => None,
            };
            if let Some(error) = end {
                // The stream may be gone.
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(ReceiverStream::new(messages))
    }

    /// Tells until every chunk is held, or none is any more: then why.
    async fn tell(
        mut self,
        file: FileId,
        mut told: ChunkSet,
        mut bell: watch::Receiver<Scarce>,
        sender: &mpsc::Sender<Message>,
    ) -> Option<ServeError> {
        let message = |reset, chunks: &ChunkSet| Ok(wire::WatchChunksResponse { reset, chunks: Some(chunks.into()) });
        sender.send(message(true, &told)).await.ok()?;
        let (mut told_at, mut told_scarce) = (Instant::now(), *bell.borrow());
        while !told.is_full() {
            bell.changed().await.ok()?;
            // However much there will be, it is not told sooner, unless a scarce chunk comes; nothing is looked at until then.
            let plenty = News { listeners: self.listeners(), bytes: u64::MAX, is_last: true, is_scarce: false };
            tokio::select! {
                () = self.pause(plenty, told_at) => {}
                scarce = bell.wait_for(|scarce| *scarce > told_scarce) => drop(scarce.ok()?),
            }
            loop {
                let scarce = *bell.borrow_and_update();
                let Some((held, chunk_size)) = self.holdings.chunks_of(file) else {
                    return Some(ReadError::UnknownFile(file).into());
                };
                let (more, fewer) = (held.difference(&told), told.difference(&held));
                let bytes = u64::from(more.len()) * u64::from(chunk_size);
                let is_scarce = scarce > told_scarce;
                let news = News { listeners: self.listeners(), bytes, is_last: held.is_full(), is_scarce };
                let message = match (more.is_empty(), fewer.is_empty()) {
                    (true, true) => break,
                    (false, true) => {
                        tokio::select! {
                            () = self.pause(news, told_at) => message(false, &more),
                            rung = bell.changed() => {
                                rung.ok()?;
                                continue;
                            }
                        }
                    }
                    (_, false) => message(true, &held),
                };
                sender.send(message).await.ok()?;
                (told, told_at, told_scarce) = (held, Instant::now(), scarce);
                break;
            }
        }
        None
    }

    fn listeners(&self) -> usize {
        self.listeners.load(Ordering::Relaxed)
    }

    /// Until this news is to be told.
    async fn pause(&mut self, news: News, told_at: Instant) {
        let idle = async { self.idle.wait_for(|idle| *idle).await.is_ok() };
        tokio::select! {
            biased;
            () = sleep_until(told_at + news.pause(false)) => {}
            _ = idle => sleep_until(told_at + news.pause(true)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{ChunkIndex, FileName, Manifest};
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;
    use crate::store::{
        disk::Disk,
        testing::content,
        write::{PartialFile, StoredChunk},
    };

    /// A desk, what it tells of, a partial file there with these chunks, and whether the peer is idle.
    fn desk(first: &str, is_idle: bool) -> (NewsDesk, Arc<Holdings>, Manifest, watch::Sender<bool>) {
        let (holdings, manifest) = (Arc::new(Holdings::default()), content(1).1);
        let partial = Arc::new(PartialFile::at("/partial".as_ref(), manifest.clone(), Disk::default()));
        holdings.insert_partial(name(), partial, set(&manifest, first));
        let idle = watch::Sender::new(is_idle);
        let desk = NewsDesk::new(holdings.clone(), idle.subscribe(), CancellationToken::new());
        (desk, holdings, manifest, idle)
    }

    fn name() -> FileName {
        FileName::new("a").unwrap()
    }

    fn set(manifest: &Manifest, ranges: &str) -> ChunkSet {
        ChunkSet::from_ranges(manifest.layout().chunk_count(), &ranges.parse().unwrap()).unwrap()
    }

    fn index(manifest: &Manifest, chunk: u32) -> ChunkIndex {
        manifest.layout().chunk_count().index(chunk).unwrap()
    }

    async fn next(stream: &mut ReceiverStream<Message>) -> (bool, String) {
        let message = stream.next().await.expect("the stream goes on").expect("news");
        let chunks = ChunkSet::try_from(message.chunks.expect("chunks")).unwrap();
        (message.reset, chunks.ranges().to_string())
    }

    #[tokio::test]
    async fn what_is_held_is_told_and_then_what_comes_until_all_is_there() {
        let (desk, holdings, manifest, _idle) = desk("1", true);
        let mut stream = desk.open(manifest.id()).unwrap();
        assert_eq!(next(&mut stream).await, (true, "1".to_owned()));
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 0)), false);
        assert_eq!(next(&mut stream).await, (false, "0".to_owned()));
        holdings.take_back(&name(), manifest.id(), &set(&manifest, "1"));
        assert_eq!(next(&mut stream).await, (true, "0".to_owned()), "fewer: told anew");
        // Told together, if it is not told at once.
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 1)), false);
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 2)), false);
        assert_eq!(next(&mut stream).await, (false, "1-2".to_owned()));
        assert!(stream.next().await.is_none(), "there is nothing more to tell");
        assert_eq!(desk.listeners.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_peer_gathers_small_news_and_an_idle_one_does_not() {
        let (desk, holdings, manifest, idle) = desk("1", false);
        let (mut stream, _other) = (desk.open(manifest.id()).unwrap(), desk.open(manifest.id()).unwrap());
        assert_eq!(next(&mut stream).await, (true, "1".to_owned()));
        let news = |is_last| News { listeners: 2, bytes: 1 << 14, is_last, is_scarce: false };
        let began = Instant::now();
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 0)), false);
        assert_eq!(next(&mut stream).await, (false, "0".to_owned()));
        assert!(began.elapsed() >= news(false).pause(false));
        let told_at = Instant::now();
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 2)), false);
        idle.send_replace(true);
        assert_eq!(next(&mut stream).await, (false, "2".to_owned()));
        assert!(told_at.elapsed() < news(true).pause(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_peer_tells_of_a_scarce_chunk_without_delay_also_while_it_gathers() {
        let (desk, holdings, manifest, _idle) = desk("1", false);
        let mut stream = desk.open(manifest.id()).unwrap();
        assert_eq!(next(&mut stream).await, (true, "1".to_owned()));
        let began = Instant::now();
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 0)), false);
        // It waits for more by now.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        holdings.stored(&name(), StoredChunk::pretend(manifest.id(), index(&manifest, 2)), true);
        assert_eq!(next(&mut stream).await, (false, "0,2".to_owned()), "with what it had gathered");
        let news = |is_scarce| News { listeners: 1, bytes: 1 << 15, is_last: true, is_scarce };
        assert!(began.elapsed() < news(false).pause(false), "{:?}", began.elapsed());
        assert!(began.elapsed() >= news(true).pause(false));
    }

    #[tokio::test]
    async fn a_file_that_is_not_held_is_not_found_also_in_the_middle() {
        let (desk, holdings, manifest, _idle) = desk("1", true);
        let other = content(2).1.id();
        assert_eq!(Status::from(desk.open(other).unwrap_err()).code(), Code::NotFound);
        let mut stream = desk.open(manifest.id()).unwrap();
        assert_eq!(next(&mut stream).await, (true, "1".to_owned()));
        holdings.remove(&name(), false);
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::NotFound);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn only_so_many_listen() {
        let (desk, _, manifest, _idle) = desk("1", true);
        let open = || desk.open(manifest.id());
        let streams: Vec<_> = (0..MOST).map(|_| open().unwrap()).collect();
        assert_eq!(Status::from(open().unwrap_err()).code(), Code::ResourceExhausted);
        drop(streams);
        // Their tasks notice it in their own time.
        while desk.listeners.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(open().is_ok());
    }

    #[tokio::test]
    async fn listeners_are_told_that_the_daemon_stops() {
        let (desk, _, manifest, _idle) = desk("1", true);
        let mut stream = desk.open(manifest.id()).unwrap();
        next(&mut stream).await;
        desk.stop.cancel();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}
