//! A directory with pictures, and a secret beside it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::FutureExt;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use tempfile::TempDir;

use super::super::{Fetcher, test_server::config};
use super::*;
use crate::domain::{
    ImageSource,
    ItemErrorKind::{self, *},
};
use crate::telemetry::Metrics;

/// `photos/a b.png`, `photos/shop/1.png`, and `secret` outside.
struct Place {
    dir: TempDir,
    fetcher: Fetcher,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("photos");
        fs::create_dir_all(root.join("shop")).unwrap();
        fs::write(root.join("a b.png"), "picture").unwrap();
        fs::write(root.join("shop/1.png"), "first").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let files_root = root.to_str().unwrap().to_owned();
        let fetcher =
            Fetcher::new(&FetchConfig { files_root, max_bytes: 10, ..config() }, Metrics::new()).unwrap();
        Self { dir, fetcher }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("photos").join(below)
    }

    async fn result(&self, address: &str) -> Result<Bytes, FetchError> {
        self.fetcher.fetch(ImageSource::Url(address.to_owned())).await
    }

    async fn check(&self, address: &str, expected: Result<&str, ItemErrorKind>) {
        let result = self.result(address).await.map_err(|error| error.kind());
        assert_eq!(result, expected.map(|text| Bytes::from(text.to_owned())), "{address}");
    }
}

#[tokio::test]
async fn reads_what_is_below_the_root() {
    let place = Place::new();
    let root = place.path("").to_str().unwrap().to_owned();
    for (address, expected) in [
        ("a b.png".to_owned(), Ok("picture")),
        ("./shop/../shop/1.png".to_owned(), Ok("first")),
        (format!("file://{root}a%20b.png"), Ok("picture")),
        (format!("FILE://localhost{root}shop/1.png?size=2#x"), Ok("first")),
        (format!("file:{root}shop\\1.png"), Ok("first")),
        (format!("{root}shop/1.png"), Ok("first")),
        // A path is no URL.
        ("a%20b.png".to_owned(), Err(NotFound)),
        ("shop\\1.png".to_owned(), Err(NotFound)),
        ("shop/2.png".to_owned(), Err(NotFound)),
        ("shop".to_owned(), Err(NotFound)),
        ("shop/1.png/2.png".to_owned(), Err(NotFound)),
        ("shop/1.png\0.jpg".to_owned(), Err(NotFound)),
        (format!("file://{root}"), Err(NotFound)),
        ("x".repeat(300), Err(NotFound)),
        ("x".repeat(60_000), Err(NotFound)),
    ] {
        place.check(&address, expected).await;
    }
    let encoded = ImageSource::Encoded(format!("file://{root}shop/1.png").as_str().into());
    assert_eq!(place.fetcher.fetch(encoded).await, Ok(Bytes::from_static(b"first")));
}

#[tokio::test]
async fn nothing_outside_is_reached_or_told() {
    let place = Place::new();
    let dir = place.dir.path().to_str().unwrap();
    symlink("../secret", place.path("relative")).unwrap();
    symlink(place.dir.path().join("secret"), place.path("absolute")).unwrap();
    symlink("..", place.path("up")).unwrap();
    symlink("../missing", place.path("dangling")).unwrap();
    symlink("/proc/self/cwd", place.path("magic")).unwrap();
    for address in [
        "../secret".to_owned(),
        "../missing".to_owned(),
        "shop/../../secret".to_owned(),
        "shop/../../missing".to_owned(),
        format!("{dir}/secret"),
        format!("{dir}/missing"),
        format!("{dir}/photos/../secret"),
        format!("{dir}/photos-of-others/1.png"),
        format!("file://{dir}/secret"),
        format!("file://{dir}/photos/../secret"),
        format!("file://{dir}/photos/%2e%2E/secret"),
        format!("file://{dir}/photos/..%2Fsecret"),
        format!("file://{dir}/photos\\..\\secret"),
        "file://example.com/photos/a.png".to_owned(),
        "file:///etc/passwd".to_owned(),
        "relative".to_owned(),
        "absolute".to_owned(),
        "up/secret".to_owned(),
        "up/photos/shop/1.png".to_owned(),
        "dangling".to_owned(),
        "magic/secret".to_owned(),
    ] {
        assert_eq!(place.result(&address).await, Err(FetchError::Outside), "{address}");
    }
}

#[tokio::test]
async fn links_within_the_root_are_followed() {
    let place = Place::new();
    symlink("../a b.png", place.path("shop/best.png")).unwrap();
    symlink("shop", place.path("current")).unwrap();
    symlink("circle", place.path("circle")).unwrap();
    place.check("current/best.png", Ok("picture")).await;
    place.check("circle", Err(NotFound)).await;
}

#[tokio::test]
async fn only_regular_files_of_the_right_size_are_pictures() {
    let place = Place::new();
    mknodat(CWD, place.path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).unwrap();
    fs::write(place.path("empty"), "").unwrap();
    fs::write(place.path("most"), "0123456789").unwrap();
    fs::write(place.path("more"), "0123456789a").unwrap();
    for (name, expected) in [
        ("pipe", Err(NotFound)),
        ("socket", Err(NotFound)),
        ("empty", Err(EmptyImage)),
        ("most", Ok("0123456789")),
        ("more", Err(TooLarge)),
    ] {
        place.check(name, expected).await;
    }
}

#[test]
fn a_file_that_grows_is_counted_as_it_is_read() {
    // Its size reads 0.
    let read = read(Path::new("/proc"), Path::new("version"), 10);
    assert!(matches!(read, Err(FetchError::TooLarge { limit: 10, .. })), "{read:?}");
}

#[tokio::test]
async fn a_file_may_be_withheld() {
    let place = Place::new();
    fs::set_permissions(place.path("shop/1.png"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if fs::read(place.path("shop/1.png")).is_err() {
        place.check("shop/1.png", Err(Forbidden)).await;
    }
    let denied = |errno: Errno| refusal(Path::new("a/b.png"), &errno.into());
    assert_eq!(denied(Errno::ACCESS).to_string(), "the file `b.png` may not be read by this process");
    assert_eq!(denied(Errno::PERM).kind(), Forbidden);
    assert_eq!(denied(Errno::AGAIN).kind(), HostError);
    assert_eq!(denied(Errno::IO).to_string(), "`b.png` failed: it cannot be read now");
}

#[tokio::test]
async fn messages_name_no_directory() {
    let place = Place::new();
    let missing = place.result(&format!("shop/\u{7}{}", "x".repeat(100))).await.unwrap_err().to_string();
    let name = format!("` {}`", "x".repeat(MAX_NAME_CHARS - 1));
    assert_eq!(
        missing,
        format!("there is no file {name} where its path says, below `fetch.files_root`"),
        "one line, and a short one"
    );
    fs::write(place.path("shop/more"), [0; 11]).unwrap();
    assert_eq!(
        place.result("shop/more").await.unwrap_err().to_string(),
        "the picture at `more` is larger than `fetch.max_bytes` 10; raise it or send a smaller picture"
    );
}

#[tokio::test]
async fn the_directory_may_be_replaced_but_must_be_there_at_the_start() {
    let place = Place::new();
    fs::rename(place.path(""), place.dir.path().join("old")).unwrap();
    place.check("a b.png", Err(NotFound)).await;
    fs::create_dir(place.path("")).unwrap();
    fs::write(place.path("new.png"), "new").unwrap();
    place.check("new.png", Ok("new")).await;
    let missing = FetchConfig { files_root: place.path("none").to_str().unwrap().into(), ..config() };
    let error = Fetcher::new(&missing, Metrics::new()).err().unwrap().to_string();
    assert!(
        error.starts_with("cannot use `fetch.files_root` /") && error.contains("No such file"),
        "{error}"
    );
}

#[tokio::test]
async fn files_that_hang_leave_room_for_downloads() {
    let place = Place::new();
    let files_root = place.path("").to_str().unwrap().to_owned();
    let places = Places::new(2, 2);
    let files = Files::new(
        &FetchConfig { files_root, max_concurrent: 2, ..config() },
        places.clone(),
        Backlog::new(10),
    )
    .unwrap();
    let hung = files.readers.take(Lane::Bulk).await;
    let mut waiting = pin!(files.get("a b.png", Lane::Bulk));
    assert!((&mut waiting).now_or_never().is_none(), "one file at once");
    let downloads =
        [places.take_at("a", Lane::Bulk).now_or_never(), places.take_at("a", Lane::Bulk).now_or_never()];
    assert!(downloads.iter().all(Option::is_some), "none of the places is taken");
    drop((hung, downloads));
    assert_eq!(waiting.await, Ok(Bytes::from_static(b"picture")));
}

/// What a check before the opening would lose: the directory on the way becomes a link to the outside.
#[test]
fn no_race_leads_out() {
    let place = Place::new();
    fs::create_dir(place.path("outside")).unwrap();
    fs::remove_dir(place.path("outside")).unwrap();
    symlink("..", place.path("outside")).unwrap();
    fs::write(place.path("shop/secret"), "public").unwrap();
    let done = AtomicBool::new(false);
    let (root, shop, outside) = (place.path(""), place.path("shop"), place.path("outside"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &shop, CWD, &outside, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let (mut n_read, mut n_refused) = (0, 0);
        for _ in 0..20_000 {
            match read(&root, Path::new("shop/secret"), 10) {
                Ok(bytes) => {
                    assert_eq!(bytes, "public");
                    n_read += 1;
                }
                Err(FetchError::Outside) => n_refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(n_read > 0 && n_refused > 0, "the directory changed meanwhile: {n_read}, {n_refused}");
    });
}
