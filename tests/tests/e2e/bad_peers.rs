//! One bad peer costs a chunk, not a download; and no bad peer gets a wrong byte into a file.

use drizzle_tests::{
    Cluster, Content, FakePeer, Manner,
    content::{SMALL_CHUNK, files_below},
    until,
};
use tonic::Code;

const CHUNKS: usize = 32;

/// Beside an honest peer the offender only delays; it is named with its offence, and its bytes are not
/// in the file.
async fn is_survived_and_named(manner: Manner, offence: &str) {
    let cluster = Cluster::start().await;
    let honest = cluster.peer("honest").await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    honest.share(&a).await;
    let bad = FakePeer::start(&cluster.tracker.url(), &a, manner.clone()).await;
    let downloader = cluster.peer("downloader").await;

    let run = downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    let blamed = run.blamed();
    let [(peer, named, chunks)] = &blamed[..] else { panic!("{manner:?}: one offender, one offence: {blamed:?}") };
    assert_eq!((peer, named.as_str()), (&bad.address.to_string(), offence), "{manner:?}");
    assert!(!chunks.is_empty());
    assert_eq!(
        run.sources()[&honest.address().to_string()].chunks,
        CHUNKS as u64,
        "every good chunk is the honest peer's"
    );
    assert!(bad.requests().len() < CHUNKS, "an offender is left alone for a while: {:?}", bad.requests());
}

/// By that holders know whom a free slot helps most.
#[tokio::test]
async fn a_peer_says_how_many_chunks_come_to_it_while_streams_of_others_stand_still() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let stalled = FakePeer::start(&cluster.tracker.url(), &a, Manner::Stalls(1000)).await;
    let downloader = cluster.peer("downloader").await;
    let download = downloader.start_cli(["download", "A"]);
    until("its first chunks come", async || (stalled.requests().len() > 1).then_some(())).await;
    let honest = FakePeer::start(&cluster.tracker.url(), &a, Manner::Honest).await;
    let says_so = async || honest.receiving().iter().any(|coming| *coming > 0).then_some(());
    until("it has asked the other one", says_so).await;
    download.ended().await.expect(0);
    assert_eq!(stalled.receiving()[0], 0, "nothing came before");
    a.assert_at(&downloader.path("A"));
}

#[tokio::test]
async fn wrong_bytes() {
    is_survived_and_named(Manner::WrongBytes, "wrong bytes").await;
}

/// A stall takes seconds to be called one. An honest holder beside it would have served everything twice
/// over by then, so it comes only later.
async fn a_stall_is_survived_and_named(after: usize) {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let bad = FakePeer::start(&cluster.tracker.url(), &a, Manner::Stalls(after)).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    download.until("a charge", |events| events.iter().any(|event| event["step"] == "failed")).await;
    let honest = cluster.peer("honest").await;
    honest.share(&a).await;
    let run = download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    for (peer, offence, chunks) in run.blamed() {
        assert_eq!((peer, offence.as_str()), (bad.address.to_string(), "stalled"));
        assert!(!chunks.is_empty());
    }
    assert!(!run.blamed().is_empty());
    assert_eq!(run.sources()[&honest.address().to_string()].chunks, CHUNKS as u64);
}

#[tokio::test]
async fn a_stall_before_the_first_byte() {
    a_stall_is_survived_and_named(0).await;
}

#[tokio::test]
async fn a_stall_after_some_bytes() {
    a_stall_is_survived_and_named(1000).await;
}

#[tokio::test]
async fn a_stall_beside_an_honest_holder_holds_nobody_up() {
    let cluster = Cluster::start().await;
    let honest = cluster.peer("honest").await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    honest.share(&a).await;
    let _bad = FakePeer::start(&cluster.tracker.url(), &a, Manner::Stalls(1000)).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.sources()[&honest.address().to_string()].chunks, CHUNKS as u64);
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_chunk() {
    is_survived_and_named(Manner::BreaksOff(1000), "refused").await;
}

/// Each stream breaks off after some bytes; none of them comes twice.
#[tokio::test]
async fn a_chunk_goes_on_at_its_offset_after_each_break() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 1);
    let breaking = FakePeer::start(&cluster.tracker.url(), &a, Manner::BreaksOff(6000)).await;
    let downloader = cluster.peer("downloader").await;
    downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    assert_eq!(breaking.offsets(0), [0, 6000, 12_000]);
}

#[tokio::test]
async fn an_end_before_the_last_byte() {
    is_survived_and_named(Manner::EndsEarly(1000), "broke off").await;
}

#[tokio::test]
async fn no_bytes_at_all() {
    is_survived_and_named(Manner::EndsEarly(0), "broke off").await;
}

#[tokio::test]
async fn bytes_beyond_the_end() {
    is_survived_and_named(Manner::SendsTooMuch, "wrong bytes").await;
}

#[tokio::test]
async fn a_message_above_what_the_contract_allows() {
    is_survived_and_named(Manner::HugeMessage(3 << 20), "refused").await;
}

#[tokio::test]
async fn a_message_above_what_the_transport_allows() {
    is_survived_and_named(Manner::HugeMessage(16 << 20), "refused").await;
}

#[tokio::test]
async fn messages_without_a_byte_forever() {
    is_survived_and_named(Manner::EmptyMessages, "refused").await;
}

#[tokio::test]
async fn a_lie_about_the_file() {
    is_survived_and_named(Manner::Says(Code::NotFound), "does not hold it").await;
}

#[tokio::test]
async fn a_lie_about_a_chunk() {
    // Every chunk that it says it lacks is asked once: it may well hold the others.
    let cluster = Cluster::start().await;
    let honest = cluster.peer("honest").await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    honest.share(&a).await;
    let bad = FakePeer::start(&cluster.tracker.url(), &a, Manner::Says(Code::FailedPrecondition)).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    let blamed = run.blamed();
    assert!(!blamed.is_empty());
    for (peer, offence, _) in blamed {
        assert_eq!((peer, offence.as_str()), (bad.address.to_string(), "does not hold it"));
    }
    let mut requests = bad.requests();
    let all = requests.len();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), all, "no chunk is asked twice of a peer that does not hold it");
}

#[tokio::test]
async fn a_nonsensical_answer() {
    is_survived_and_named(Manner::Says(Code::Unimplemented), "refused").await;
}

#[tokio::test]
async fn a_changed_file() {
    is_survived_and_named(Manner::Says(Code::DataLoss), "changed file").await;
}

#[tokio::test]
async fn a_busy_holder_is_not_blamed() {
    let cluster = Cluster::start().await;
    let honest = cluster.peer("honest").await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    honest.share(&a).await;
    let _busy = FakePeer::start(&cluster.tracker.url(), &a, Manner::Says(Code::ResourceExhausted)).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.blamed(), []);
}

/// The holder chooses, and the whole file must come out right all the same.
#[tokio::test]
async fn a_holder_that_chooses_what_it_sends() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let source = FakePeer::start(&cluster.tracker.url(), &a, Manner::Chooses).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.blamed(), []);
    assert_eq!(run.sources()[&source.address.to_string()].chunks, CHUNKS as u64);
}

/// Alone as a full holder it may choose; its offence is charged, and nothing of it gets into the file.
async fn is_caught_alone(manner: Manner, offence: &str, code: i32) {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let bad = FakePeer::start(&cluster.tracker.url(), &a, manner.clone()).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.cli(["download", "A", "--timeout", "2s"]).await.expect(code);
    assert!(!run.blamed().is_empty());
    for (peer, named, _) in run.blamed() {
        assert_eq!((peer, named.as_str()), (bad.address.to_string(), offence), "{manner:?}");
    }
    assert_eq!(files_below(&downloader.dir), [""; 0]);
    let honest = cluster.peer("honest").await;
    honest.share(&a).await;
    downloader.cli(["download", "A"]).await.expect(0);
    a.assert_at(&downloader.path("A"));
}

#[tokio::test]
async fn a_holder_that_sends_another_chunk_than_it_names() {
    is_caught_alone(Manner::ChoosesAndLies, "wrong bytes", 4).await;
}

#[tokio::test]
async fn a_holder_that_names_a_chunk_that_was_not_asked_for() {
    is_caught_alone(Manner::NamesAnother, "refused", 7).await;
}

#[tokio::test]
async fn one_wrong_chunk_does_not_taint_the_right_ones() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let [first, second] = [
        FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongChunk(7)).await,
        FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongChunk(9)).await,
    ];
    let downloader = cluster.peer("downloader").await;
    downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
    assert!(!first.requests().is_empty() && !second.requests().is_empty());
}

/// A liar gives a wrong part of a file's only chunk and breaks off; an honest holder gives the rest.
#[tokio::test]
async fn of_two_holders_that_made_a_wrong_chunk_together_the_one_that_lies_is_found() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 1);
    let liar = FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongPart(5000)).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A", "--timeout", "1000s"]);
    let failed = |events: &[serde_json::Value], offence: &str| {
        events.iter().any(|event| event["reason"].as_str().is_some_and(|reason| reason.starts_with(offence)))
    };
    download.until("the end of the wrong part", |events| failed(events, "refused")).await;
    let (honest, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    // The rest of the chunk, and then nothing until the liar was asked for all of it.
    gate.add_permits(1);
    download.until("wrong bytes of the liar alone", |events| failed(events, "wrong bytes")).await;
    gate.add_permits(10);
    let run = download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    assert!(run.blamed().iter().all(|(peer, ..)| *peer == liar.address.to_string()), "{:?}", run.blamed());
    assert!(honest.requests().len() >= 2, "for the rest of it, and for all of it");
}

#[tokio::test]
async fn a_vanished_holder_is_replaced() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let mut gone = FakePeer::start(&cluster.tracker.url(), &a, Manner::Gated(gate.clone())).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate.add_permits(5);
    download.until_stored(5).await;
    gone.vanish();
    let honest = cluster.peer("honest").await;
    honest.share(&a).await;
    let run = download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.sources()[&gone.address.to_string()].chunks, 5);
    assert_eq!(run.sources()[&honest.address().to_string()].chunks, CHUNKS as u64 - 5);
    assert!(run.blamed().iter().any(|(peer, ..)| *peer == gone.address.to_string()), "{:?}", run.blamed());
}

/// Alone, an offender makes the download fail with this exit code, and nothing is left in place.
async fn fails_alone(manner: Manner, code: i32) {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 4);
    let bad = FakePeer::start(&cluster.tracker.url(), &a, manner.clone()).await;
    let downloader = cluster.peer("downloader").await;
    // Long enough that a stall, which takes seconds to be called one, is charged before the end.
    let timeout = if matches!(manner, Manner::Stalls(_)) { "20s" } else { "2s" };
    let run = downloader.cli(["download", "A", "--timeout", timeout]).await;
    assert_eq!(run.code, code, "{manner:?}: {:?} {}", run.events.last(), run.stderr);
    assert_eq!(run.lacking(), [0, 1, 2, 3]);
    if !matches!(manner, Manner::Says(Code::ResourceExhausted)) {
        assert!(
            run.blamed().iter().any(|(peer, ..)| *peer == bad.address.to_string()),
            "{manner:?}: {:?}",
            run.blamed()
        );
    }
    assert_eq!(files_below(&downloader.dir), [""; 0]);
}

#[tokio::test]
async fn only_wrong_bytes_is_an_integrity_failure() {
    fails_alone(Manner::WrongBytes, 4).await;
}

#[tokio::test]
async fn only_a_changed_file_is_an_integrity_failure() {
    fails_alone(Manner::Says(Code::DataLoss), 4).await;
}

#[tokio::test]
async fn only_stalls_is_a_timeout() {
    fails_alone(Manner::Stalls(100), 7).await;
}

#[tokio::test]
async fn only_lies_about_holdings_is_a_timeout() {
    fails_alone(Manner::Says(Code::NotFound), 7).await;
}

#[tokio::test]
async fn only_busy_holders_is_a_timeout() {
    fails_alone(Manner::Says(Code::ResourceExhausted), 7).await;
}

#[tokio::test]
async fn what_was_verified_before_a_failure_is_kept_for_the_next_attempt() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let bad = FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongChunk(20)).await;
    let downloader = cluster.peer("downloader").await;
    // The offender is avoided after its offence, so that more may be lacking than the bad chunk.
    let run = downloader.cli(["download", "A", "--timeout", "2s"]).await.expect(4);
    let lacking = run.lacking();
    assert!(lacking.contains(&20), "{lacking:?}");
    assert_eq!(run.blamed(), [(bad.address.to_string(), "wrong bytes".to_owned(), vec![20])]);
    drop(bad);

    let honest = cluster.peer("honest").await;
    honest.share(&a).await;
    let again = downloader.download("A").await;
    assert_eq!(again.fetched(), lacking.len() as u64 * u64::from(SMALL_CHUNK));
    a.assert_at(&downloader.path("A"));
}
