//! The embedder as a whole, over the stub model: lanes, single flight, admission, placeholders, order.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::join_all;
use sidelens::config::{Config, DEFAULT_TOML};
use sidelens::domain::{
    Content, EmbedError, EmbedInput, EmbedRequest, EmbedResponse, Embedding, ImageSource, InputType,
    ItemErrorKind, Modality, OnItemError, Part, Prepared,
};
use sidelens::embedder::{Embedder, Shared};
use sidelens::fetch::Fetcher;
use sidelens::runtime::LoadedModel;
use sidelens::runtime::stub::{StubBackend, StubRecord, stub_model, stub_model_over};
use sidelens::telemetry::Metrics;
use tokio::{task::JoinHandle, time::Instant};

use crate::support::{decode_worker, slow_model};

struct Service {
    embedder: Embedder,
    metrics: Arc<Metrics>,
}

impl Service {
    async fn spawn(model: LoadedModel, adjust: impl FnOnce(&mut Config)) -> Self {
        let service = Self::cold(model, adjust);
        service.embedder.warm_up().await.unwrap();
        service
    }

    fn cold(model: LoadedModel, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        // The default follows the device; these tests count batches.
        config.batch.max_batch_size = 32;
        adjust(&mut config);
        let metrics = Metrics::new();
        let fetcher = Fetcher::new(&config.fetch, metrics.clone()).unwrap();
        let shared = Shared::new(&config, fetcher, decode_worker, metrics.clone()).unwrap();
        let embedder = Embedder::new(model, &config.batch, &shared).unwrap();
        Self { embedder, metrics }
    }

    /// A service over a stub that takes `delay` per batch, with a record of what came after the warm-up.
    async fn recorded(delay: Duration, adjust: impl FnOnce(&mut Config)) -> (Self, StubRecord) {
        let backend = StubBackend::new(16).with_delay(delay);
        let record = backend.record();
        let service = Self::spawn(stub_model_over(backend), adjust).await;
        record.clear();
        (service, record)
    }

    async fn embed(&self, inputs: Vec<EmbedInput>) -> Result<EmbedResponse, EmbedError> {
        self.embed_as(inputs, OnItemError::Fail).await
    }

    async fn embed_as(
        &self,
        inputs: Vec<EmbedInput>,
        on_item_error: OnItemError,
    ) -> Result<EmbedResponse, EmbedError> {
        self.embedder
            .embed(EmbedRequest { model: None, dimensions: None, inputs }, on_item_error, Instant::now())
            .await
    }

    async fn vector(&self, input: EmbedInput) -> Embedding {
        self.embed(vec![input]).await.unwrap().embeddings.remove(0)
    }
}

fn text(text: &str) -> EmbedInput {
    EmbedInput::text(text)
}

/// A PNG of one colour, as bare base64.
fn picture(color: [u8; 3]) -> EmbedInput {
    let mut png = Vec::new();
    image::RgbImage::from_pixel(9, 9, image::Rgb(color))
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    EmbedInput::image(ImageSource::Encoded(STANDARD.encode(png).as_str().into()))
}

fn broken() -> EmbedInput {
    EmbedInput::image(ImageSource::Encoded(
        STANDARD.encode("not a picture, however long it is").as_str().into(),
    ))
}

/// Both of `text` and `picture`, by weight.
fn both(text: EmbedInput, picture: EmbedInput, weights: [f32; 2]) -> EmbedInput {
    let parts = text.parts.into_iter().chain(picture.parts).zip(weights);
    EmbedInput { parts: parts.map(|(part, weight)| Part { weight, ..part }).collect(), input_type: None }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<EmbedInput> {
    range.map(|n| text(&n.to_string())).collect()
}

fn close(left: &Embedding, right: &Embedding) -> bool {
    left.cosine(right) > 0.999_999
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_items() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let (red, blue) = (picture([255, 0, 0]), picture([0, 0, 255]));
    let mixed = both(text("tree"), blue.clone(), [1.0, 3.0]);
    let response =
        service.embed(vec![text("red"), red.clone(), mixed, text(""), blue.clone()]).await.unwrap();
    let [a, b, c, d, e] = &response.embeddings[..] else { panic!("five vectors") };
    let tree = service.vector(text("tree")).await;
    assert!(close(a, &service.vector(text("red")).await));
    assert!(close(b, &service.vector(red).await));
    assert!(close(c, &Embedding::weighted_mean([(&tree, 1.0), (e, 3.0)]).unwrap()));
    assert!(close(d, &service.vector(text("")).await));
    assert!(close(e, &service.vector(blue).await));
    assert!(!close(b, e) && !close(a, d));
    // <s> red </s>, <s> tree </s>, <s> </s>
    assert_eq!((response.usage.text_tokens, response.usage.images), (8, 3));
    assert_eq!(service.metrics.items.with_label_values(&["image", "ok"]).get(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_merge_into_batches_and_every_one_gets_its_own_vectors() {
    let (service, record) = Service::recorded(Duration::from_millis(20), |_| ()).await;
    let requests = (0..40).map(|r| service.embed(numbers(r * 10..r * 10 + 10)));
    let responses = join_all(requests).await;
    let batches = record.batches();
    assert_eq!(record.n_inputs(), 400);
    assert!(batches.iter().all(|batch| batch.len() <= 32));
    assert!(batches.len() <= 20, "{} batches for 400 inputs", batches.len());
    for (r, response) in responses.into_iter().enumerate() {
        let vectors = response.unwrap().embeddings;
        assert!(close(&vectors[3], &service.vector(text(&(r * 10 + 3).to_string())).await));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_texts_in_flight_are_computed_once() {
    for max_bytes in [0, 1 << 20] {
        let (service, record) =
            Service::recorded(Duration::from_millis(50), |config| config.cache.max_bytes = max_bytes).await;
        let responses = join_all((0..40).map(|_| service.embed(vec![text("blue fish")]))).await;
        assert!(responses.iter().all(|response| response.as_ref().unwrap().usage.text_tokens == 4));
        assert_eq!(record.n_inputs(), 1);
        assert_eq!(service.metrics.cache_hits.with_label_values(&["memory"]).get(), 39);
    }
}

#[tokio::test]
async fn a_cached_picture_is_not_decoded_again() {
    let (service, record) = Service::recorded(Duration::ZERO, |_| ()).await;
    let first = service.vector(picture([9, 9, 9])).await;
    let second = service.vector(picture([9, 9, 9])).await;
    assert_eq!(first, second);
    assert_eq!((record.n_inputs(), service.metrics.decode_seconds.get_sample_count()), (1, 1));
}

/// A service that has begun to compute the numbers up to 80, four at a time and slowly.
async fn indexing_eighty() -> (Service, StubRecord, JoinHandle<Result<EmbedResponse, EmbedError>>) {
    let (service, record) = Service::recorded(Duration::from_millis(20), |config| {
        config.batch.max_batch_size = 4;
    })
    .await;
    let indexing = tokio::spawn({
        let embedder = service.embedder.clone();
        let request = EmbedRequest { model: None, dimensions: None, inputs: numbers(0..80) };
        async move { embedder.embed(request, OnItemError::Fail, Instant::now()).await }
    });
    while record.batches().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (service, record, indexing)
}

#[tokio::test]
async fn a_search_overtakes_an_indexing_run() {
    let (service, record, indexing) = indexing_eighty().await;
    service.embed(vec![text("red")]).await.unwrap();
    assert!(record.batches().len() <= 4, "{} batches came first", record.batches().len());
    indexing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_search_for_what_bulk_waits_for_overtakes_it_too() {
    let (service, record, indexing) = indexing_eighty().await;
    let searches = [service.embed(numbers(79..80)), service.embed(numbers(79..80))];
    assert!(join_all(searches).await.iter().all(Result::is_ok));
    assert!(record.batches().len() <= 4, "{} batches came first", record.batches().len());
    indexing.await.unwrap().unwrap();
    assert_eq!(record.n_inputs(), 81, "equal searches are one");
}

#[tokio::test]
async fn a_request_that_would_be_late_is_answered_in_time_and_leaves_the_queue() {
    let (service, record) = Service::recorded(Duration::from_millis(50), |config| {
        config.batch.max_batch_size = 8;
        config.batch.deadline_ms = 400;
    })
    .await;
    let error = service.embed(numbers(0..200)).await.unwrap_err();
    assert_eq!(error, EmbedError::Deadline { deadline_ms: 400 });
    assert_eq!(service.metrics.items_in_flight.get(), 0);
    service.embed(vec![text("red")]).await.unwrap();
    assert!(record.n_inputs() < 100, "{} were computed", record.n_inputs());
}

#[tokio::test]
async fn what_a_pass_has_begun_is_kept_for_the_retry_of_who_left() {
    let (model, brake) = slow_model(16);
    let service = Service::spawn(model, |config| config.batch.deadline_ms = 1200).await;
    let misses = || service.metrics.cache_misses.get();
    brake.set(Duration::from_secs(2));
    for (n, inputs) in [(1, vec![text("red")]), (11, numbers(0..10)), (12, vec![picture([1, 2, 3])])] {
        let late = service.embed(inputs.clone()).await.unwrap_err();
        assert_eq!(late, EmbedError::Deadline { deadline_ms: 1200 });
        service.embed(inputs.clone()).await.expect("the pass that was late is joined");
        service.embed(inputs).await.expect("kept");
        assert_eq!(misses(), n);
    }

    // Nobody asks again before the vectors are there.
    service.embed(vec![text("blue")]).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    service.embed(vec![text("blue")]).await.expect("kept");
    assert_eq!(misses(), 13);
}

#[tokio::test]
async fn work_on_texts_leaves_the_thread_of_the_requests_unless_it_is_little() {
    let (service, _) = Service::recorded(Duration::ZERO, |_| ()).await;
    let n_submitted = || {
        let batches = service.metrics.batch_size.with_label_values(&["text"]).get_sample_sum() as usize;
        batches + usize::try_from(service.metrics.queue_depth.get()).unwrap()
    };
    // What one turn of the request does: how many keys it makes, and of how many texts it makes tokens.
    let turn = async |inputs: Vec<EmbedInput>| {
        let (misses, submitted) = (service.metrics.cache_misses.get(), n_submitted());
        let mut request = Box::pin(service.embed(inputs));
        assert!((&mut request).now_or_never().is_none());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let turn = (service.metrics.cache_misses.get() - misses, n_submitted() - submitted);
        request.await.unwrap();
        turn
    };
    assert_eq!(turn(numbers(0..10)).await, (10, 10));
    let long = |n: usize| text(&format!("{n}{}", " red".repeat(n)));
    let (n_keys, n_tokenised) = turn((300..500).map(long).collect()).await;
    // A turn is not endless, and the pool may be as quick.
    assert!(
        n_keys >= 20 && n_tokenised < 10,
        "{n_tokenised} of {n_keys} texts, short each and long together"
    );
    assert_eq!(turn(vec![long(200_000)]).await, (0, 0), "not even its digest");
}

#[tokio::test]
async fn a_full_house_refuses_whole_requests_but_takes_searches() {
    let (service, record) = Service::recorded(Duration::from_millis(100), |config| {
        config.batch.max_queue_items = 16;
    })
    .await;
    let first = service.embed(numbers(0..10));
    let rest = async {
        tokio::task::yield_now().await;
        let refused = service.embed(numbers(20..30)).await;
        let search = service.embed(vec![text("red")]).await;
        (refused, search)
    };
    let (first, (refused, search)) = tokio::join!(first, rest);
    assert_eq!(refused.unwrap_err(), EmbedError::QueueFull { waiting: 10, limit: 16 });
    assert!(first.is_ok() && search.is_ok());
    assert_eq!(record.n_inputs(), 11);
}

#[tokio::test]
async fn a_panic_in_the_model_fails_its_request_and_the_service_lives_on() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    for (word, message) in [("panic", "panicked"), ("fail", "told to fail")] {
        let error = service.embed(vec![text(word)]).await.unwrap_err();
        assert!(matches!(&error, EmbedError::Internal(text) if text.contains(message)), "{error}");
        // Not a matter of the item, so no placeholder either.
        assert_eq!(service.embed_as(vec![text(word)], OnItemError::Placeholder).await, Err(error));
        service.embed(vec![text("red")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_device_is_told_and_nothing_more_is_taken() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let error = service.embed(vec![text("lose")]).await.unwrap_err();
    assert!(matches!(&error, EmbedError::Unavailable(text) if text.contains("device lost")), "{error}");
    assert!(service.embedder.device_lost().await.contains("told to lose it"));
    assert!(!service.embedder.is_ready());
    assert!(matches!(service.embed(vec![text("red")]).await, Err(EmbedError::Unavailable(_))));
}

#[tokio::test]
async fn every_broken_item_is_named() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let empty = EmbedInput::image(ImageSource::Encoded(Default::default()));
    let error = service.embed(vec![text("red"), broken(), text("blue"), empty]).await.unwrap_err();
    let EmbedError::Items(items) = error else { panic!("{error}") };
    let found: Vec<_> = items.iter().map(|item| (item.index, item.kind)).collect();
    assert_eq!(found, [(1, ItemErrorKind::NotAnImage), (3, ItemErrorKind::EmptyImage)]);
    assert_eq!(service.metrics.items.with_label_values(&["image", "not_an_image"]).get(), 1);
    assert_eq!(service.metrics.placeholder_vectors.with_label_values(&["not_an_image"]).get(), 0);
}

#[tokio::test]
async fn a_placeholder_stands_for_a_broken_item_and_is_far_from_all_others() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let inputs = vec![text("red"), broken(), both(text("blue"), broken(), [1.0, 1.0]), text("blue")];
    let response = service.embed_as(inputs, OnItemError::Placeholder).await.unwrap();
    let [red, placeholder, again, blue] = &response.embeddings[..] else { panic!("four vectors") };
    assert_eq!(placeholder, again);
    assert!((placeholder.cosine(placeholder) - 1.0).abs() < 1e-6);
    assert!(!close(placeholder, red) && close(blue, &service.vector(text("blue")).await));
    assert_eq!(response.errors.iter().map(|error| error.index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(service.metrics.placeholder_vectors.with_label_values(&["not_an_image"]).get(), 2);
}

#[tokio::test]
async fn a_query_fails_rather_than_get_the_placeholder() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let query = EmbedInput { input_type: Some(InputType::Query), ..broken() };
    let error =
        service.embed_as(vec![text("red"), query.clone()], OnItemError::Placeholder).await.unwrap_err();
    assert_eq!(error, service.embed(vec![text("red"), query]).await.unwrap_err());
    assert!(matches!(&error, EmbedError::Items(items) if items[0].index == 1), "{error}");
    assert_eq!(service.metrics.placeholder_vectors.with_label_values(&["not_an_image"]).get(), 0);
}

#[tokio::test]
async fn texts_that_lose_their_end_are_counted_cached_or_not() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    for _ in 0..2 {
        let usage = service.embed(vec![text(&"red ".repeat(30))]).await.unwrap().usage;
        assert_eq!(usage.text_tokens, 16);
    }
    assert_eq!(service.metrics.truncated_texts.get(), 2);
}

#[tokio::test]
async fn wrong_dimensions_and_missing_towers_are_refused() {
    let service = Service::spawn(stub_model(16), |_| ()).await;
    let request = EmbedRequest { model: None, dimensions: Some(512), inputs: vec![text("red")] };
    let error = service.embedder.embed(request, OnItemError::Fail, Instant::now()).await.unwrap_err();
    assert_eq!(error, EmbedError::Dimensions { requested: 512, actual: 16, model: "stub".into() });

    let mut text_only = stub_model(16);
    text_only.spec.image = None;
    let service = Service::spawn(text_only, |_| ()).await;
    let error = service.embed(vec![picture([1, 2, 3])]).await.unwrap_err();
    let EmbedError::Items(items) = error else { panic!("{error}") };
    assert_eq!(items[0].kind, ItemErrorKind::UnsupportedModality);
}

#[tokio::test]
async fn warming_up_runs_one_and_a_full_batch_of_each_modality_then_opens() {
    let backend = StubBackend::new(16);
    let record = backend.record();
    let service = Service::cold(stub_model_over(backend), |_| ());
    assert!(matches!(service.embed(vec![text("red")]).await, Err(EmbedError::Unavailable(_))));
    assert_eq!(record.n_inputs(), 0);
    service.embedder.warm_up().await.unwrap();
    assert!(service.embedder.is_ready());
    for modality in Modality::ALL {
        let sizes: Vec<usize> = record
            .batches()
            .iter()
            .filter(|batch| batch.iter().map(Prepared::modality).all(|found| found == modality))
            .map(Vec::len)
            .collect();
        assert!(sizes.contains(&1) && sizes.contains(&32), "{modality:?}: {sizes:?}");
    }
}

#[tokio::test]
async fn a_start_computes_as_much_whatever_the_size_of_a_batch() {
    let mut starts = Vec::new();
    for max_batch_size in [8, 64, 200] {
        let backend = StubBackend::new(16);
        let record = backend.record();
        let adjust = |config: &mut Config| config.batch.max_batch_size = max_batch_size;
        let service = Service::spawn(stub_model_over(backend), adjust).await;
        let n_inputs = record.n_inputs();
        let placeholder =
            service.embed_as(vec![broken()], OnItemError::Placeholder).await.unwrap().embeddings;
        starts.push((n_inputs, placeholder));
    }
    starts.dedup();
    assert_eq!(starts.len(), 1, "{starts:?}");
}

#[tokio::test]
async fn stopping_finishes_what_was_admitted() {
    let (service, _) = Service::recorded(Duration::from_millis(50), |_| ()).await;
    let waiting = tokio::spawn({
        let embedder = service.embedder.clone();
        let request = EmbedRequest { model: None, dimensions: None, inputs: numbers(0..40) };
        async move { embedder.embed(request, OnItemError::Fail, Instant::now()).await }
    });
    tokio::task::yield_now().await;
    service.embedder.shut_down().await;
    assert_eq!(waiting.await.unwrap().unwrap().embeddings.len(), 40);
    assert!(matches!(service.embed(vec![text("red")]).await, Err(EmbedError::Unavailable(_))));
}

#[tokio::test]
async fn what_is_kept_waits_for_as_long_as_it_takes() {
    let (service, record) =
        Service::recorded(Duration::from_millis(50), |config| config.batch.max_batch_size = 1).await;
    let kept = |text: &str| {
        let (embedder, content) = (service.embedder.clone(), Content::Text(text.into()));
        tokio::spawn(async move { embedder.kept(content).await })
    };
    let inputs = [kept("red"), kept("blue")];
    while record.batches().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::pause();
    // Longer than any deadline, and not so long that the pass would be taken for one that never ends.
    tokio::time::advance(Duration::from_secs(9 * 60)).await;
    // A clock that stands would leap to the next moment that anybody waits for.
    tokio::time::resume();
    for input in join_all(inputs).await {
        input.unwrap().unwrap();
    }
}
