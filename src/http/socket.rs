//! A connection's socket: read at the pace of whoever handles its requests, and with a clock for its first head.
//!
//! actix reads ahead what it can, a quarter of a megabyte of each connection, also while a request waits for room: with
//! hundreds of connections that is more than all bodies that room is there for. Here it gets a little at a time, and nothing
//! while [`Intake::pause`] holds: the rest waits with its sender.
//!
//! actix's own clock for heads answers 408, which is final for Meilisearch, and is asked before the socket is: a request
//! that came whole while the process stood still would be given up for good. Here a connection that is late ends without
//! an answer, and Meilisearch tries again.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{
    HttpRequest,
    dev::Extensions,
    rt::net::{ActixStream, Ready, TcpStream},
};
use futures_util::{FutureExt, future::LocalBoxFuture};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take},
    task::yield_now,
    time::sleep,
};

/// So many bytes are handed on at once while no handler waits for more. Most heads are smaller, and actix's buffer, which begins
/// with twice as many, grows where one comes with so much of its body.
const HEAD_AT_ONCE: usize = 4 * 1024;
/// So many are handed on before the handler that waits for them has its turn. A picture comes in several parts then, not in
/// dozens, each with a turn and a call of its own.
const BODY_AT_ONCE: usize = 64 * 1024;
/// So many bytes are read beyond what the handler of a request waits for, until the answer is sent: enough to see that a
/// caller has gone which sends little else, and too few to fill actix's buffer. While that is full behind requests that
/// wait, actix asks over and over whether there is room.
const READ_AHEAD: usize = BODY_AT_ONCE;

/// A TCP connection that reads as its [`Intake`] says.
pub(super) struct Socket {
    /// Limited to what may be handed on before others have their turn.
    tcp: Take<TcpStream>,
    intake: Rc<Intake>,
}

/// How a connection is read. Lies beside its requests.
#[derive(Default)]
pub(super) struct Intake {
    n_pauses: Cell<usize>,
    /// Whether a request is under way.
    is_busy: Cell<bool>,
    /// Whether its handler has waited for some of it.
    is_wanted: Cell<bool>,
    /// What has been read since then.
    n_ahead: Cell<usize>,
    /// Who reads, while that pauses.
    reader: Cell<Option<Waker>>,
    /// Runs until the first head is there.
    first_head: RefCell<Option<LocalBoxFuture<'static, ()>>>,
    is_late: Cell<bool>,
    /// Whether something has come since that was asked.
    has_read: Cell<bool>,
}

/// Nothing is read until this is dropped.
pub(super) struct Paused<'a>(&'a Intake);

/// What HTTP is spoken over.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin + 'static {
    /// The socket below.
    fn socket(&self) -> &Socket;
}

impl Carrier for Socket {
    fn socket(&self) -> &Socket {
        self
    }
}

impl Carrier for TlsStream<Socket> {
    fn socket(&self) -> &Socket {
        self.get_ref().0
    }
}

impl Socket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        // An error means that the caller has gone, as reading will tell.
        let _gone = tcp.set_nodelay(true);
        Self { tcp: tcp.take(HEAD_AT_ONCE as u64), intake: Rc::default() }
    }

    /// The caller's address, as long as it is connected.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.tcp.get_ref().peer_addr().ok()
    }

    /// Puts the [`Intake`] beside the requests, whose first head has to come within `first_head`.
    pub(super) fn serve(&self, first_head: Duration, beside: &mut Extensions) {
        let clock = async move {
            sleep(first_head).await;
            // After a pause of the process what has come meanwhile is read first.
            yield_now().await;
        };
        *self.intake.first_head.borrow_mut() = Some(clock.boxed_local());
        beside.insert(self.intake.clone());
    }
}

impl Intake {
    /// That of the connection that a request came over; none in tests without one.
    pub(super) fn of(request: &HttpRequest) -> Option<&Self> {
        request.conn_data::<Rc<Self>>().map(|intake| &**intake)
    }

    /// Reads nothing while the guard lives, not even that the caller has gone.
    pub(super) fn pause(&self) -> Paused<'_> {
        self.n_pauses.set(self.n_pauses.get() + 1);
        Paused(self)
    }

    /// To be called as soon as a request is there: it stops the clock of the first head. Until the [`Self::end`] of the
    /// request not much is read behind it.
    pub(super) fn begin(&self) {
        self.first_head.take();
        self.is_late.set(false);
        self.is_busy.set(true);
    }

    /// To be called when the handler of a request waits for more of its body.
    pub(super) fn want_more(&self) {
        self.is_wanted.set(true);
        self.n_ahead.set(0);
        self.wake();
    }

    /// To be called when the answer is sent.
    pub(super) fn end(&self) {
        self.is_busy.set(false);
        self.is_wanted.set(false);
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn may_read(&self) -> bool {
        if !self.is_busy.get() {
            self.n_ahead.set(0);
        }
        self.n_pauses.get() == 0 && self.n_ahead.get() < READ_AHEAD
    }

    /// How much is handed on in a turn.
    fn at_once(&self) -> u64 {
        let n_bytes = if self.is_wanted.get() { BODY_AT_ONCE } else { HEAD_AT_ONCE };
        n_bytes as u64
    }

    fn count(&self, n_bytes: usize) {
        self.n_ahead.set(self.n_ahead.get() + n_bytes);
        self.has_read.set(true);
    }

    fn is_late(&self, context: &mut Context<'_>) -> bool {
        let mut first_head = self.first_head.borrow_mut();
        if first_head.as_mut().is_some_and(|clock| clock.as_mut().poll(context).is_ready()) {
            *first_head = None;
            self.is_late.set(true);
        }
        // What has just been read may be the head: who waited for it has its turn before.
        if self.has_read.take() && self.is_late.get() {
            context.waker().wake_by_ref();
            return false;
        }
        self.is_late.get()
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.n_pauses.set(self.0.n_pauses.get() - 1);
        self.0.wake();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { tcp, intake } = self.get_mut();
        if !intake.may_read() {
            // Others have their turn meanwhile.
            tcp.set_limit(intake.at_once());
            intake.reader.set(Some(context.waker().clone()));
            return Poll::Pending;
        }
        if tcp.limit() == 0 {
            tcp.set_limit(intake.at_once());
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let n_before = buffer.filled().len();
        let read = Pin::new(&mut *tcp).poll_read(context, buffer);
        if read.is_ready() {
            intake.count(buffer.filled().len() - n_before);
            return read;
        }
        tcp.set_limit(intake.at_once());
        if intake.is_late(context) {
            tracing::debug!("no whole head in `server.client_timeout_ms`: the connection ends");
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().tcp.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().tcp.get_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().tcp.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().tcp.get_mut()).poll_shutdown(context)
    }
}

/// What TLS asks of what lies below it.
impl ActixStream for Socket {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(self.tcp.get_ref(), context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(self.tcp.get_ref(), context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::future::join;
    use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};

    use super::*;

    /// Two ends of a connection.
    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = join(listener.accept(), connect).await;
        (Socket::new(accepted.unwrap().0), connected.unwrap())
    }

    /// What is read until whoever reads has to wait.
    async fn read_available(socket: &mut Socket) -> u64 {
        let mut bytes = vec![0; 50_000];
        let mut n = 0;
        poll_fn(|context| {
            let mut buffer = ReadBuf::new(&mut bytes);
            while Pin::new(&mut *socket).poll_read(context, &mut buffer).is_ready() {
                n += buffer.filled().len() as u64;
                assert!(!buffer.filled().is_empty(), "the connection ended");
                buffer.clear();
            }
            Poll::Ready(())
        })
        .await;
        n
    }

    #[tokio::test]
    async fn reads_a_little_at_a_time_and_more_for_who_waits() {
        let (mut socket, mut peer) = pair().await;
        peer.write_all(&[7; 200_000]).await.unwrap();
        let intake = socket.intake.clone();
        for (is_wanted, at_once) in [(false, HEAD_AT_ONCE), (true, BODY_AT_ONCE), (false, HEAD_AT_ONCE)] {
            if is_wanted {
                intake.want_more()
            } else {
                intake.end()
            }
            // The first turn had its limit before.
            let mut turn = 0;
            for _ in 0..2 {
                socket.tcp.get_ref().readable().await.unwrap();
                turn = read_available(&mut socket).await as usize;
                intake.n_ahead.set(0);
            }
            assert!(turn <= at_once && turn > at_once / 4, "{turn} of {at_once}");
        }
    }

    #[tokio::test]
    async fn whoever_was_stopped_half_way_is_woken() {
        let (mut socket, mut peer) = pair().await;
        let mut bytes = vec![0; 1_000_000];
        let send = async { peer.write_all(&[7; 1_000_000]).await.unwrap() };
        let both = join(socket.read_exact(&mut bytes), send);
        timeout(Duration::from_secs(20), both).await.expect("it comes").0.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_read_during_a_pause() {
        let (mut socket, mut peer) = pair().await;
        peer.write_all(b"hello").await.unwrap();
        socket.tcp.get_ref().readable().await.unwrap();
        let intake = socket.intake.clone();
        let (one, two) = (intake.pause(), intake.pause());
        let mut bytes = [0; 5];
        let mut read = Box::pin(socket.read_exact(&mut bytes));
        assert!(read.as_mut().now_or_never().is_none());
        drop(one);
        assert!(read.as_mut().now_or_never().is_none());
        let wait = async {
            tokio::task::yield_now().await;
            drop(two);
        };
        let both = join(read, wait);
        timeout(Duration::from_secs(20), both).await.expect("it is woken").0.unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[tokio::test]
    async fn little_is_read_behind_a_request_until_its_end() {
        let (mut socket, mut peer) = pair().await;
        let intake = socket.intake.clone();
        intake.begin();
        let send = async { peer.write_all(&[7; 1_000_000]).await.unwrap() };
        let take = async {
            for (n, is_answered) in [(READ_AHEAD, false), (READ_AHEAD - 1, true)] {
                socket.read_exact(&mut vec![0; n]).await.unwrap();
                socket.tcp.get_ref().readable().await.unwrap();
                let mut read = Box::pin(socket.read_u8());
                assert!(read.as_mut().now_or_never().is_none());
                let wait = async {
                    tokio::task::yield_now().await;
                    if is_answered { intake.end() } else { intake.want_more() }
                };
                join(read, wait).await.0.unwrap();
            }
            socket.read_exact(&mut vec![0; 1_000_000 - 2 * READ_AHEAD - 1]).await.unwrap();
        };
        timeout(Duration::from_secs(20), join(send, take)).await.expect("it is woken");
    }

    #[tokio::test]
    async fn what_is_wanted_is_read_in_the_next_turn() {
        let (mut socket, mut peer) = pair().await;
        peer.write_all(b"hello").await.unwrap();
        socket.tcp.get_ref().readable().await.unwrap();
        let intake = socket.intake.clone();
        intake.begin();
        // The last part was all of a turn's, and all that is read ahead.
        socket.tcp.set_limit(0);
        intake.count(READ_AHEAD);
        assert!(socket.read_u8().now_or_never().is_none());
        intake.want_more();
        assert!(socket.read_u8().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_late_head_ends_it_unless_it_has_come_meanwhile() {
        let mut bytes = [0; 5];
        let (mut socket, mut peer) = pair().await;
        socket.serve(Duration::from_millis(10), &mut Extensions::new());
        assert_eq!(timeout(Duration::from_secs(20), socket.read(&mut bytes)).await.unwrap().unwrap(), 0);

        peer.write_all(b"hello").await.unwrap();
        socket.tcp.get_ref().readable().await.unwrap();
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 5);
        // Who waited for it looks at it before there is an end.
        assert!(socket.read(&mut bytes).now_or_never().is_none());
        assert_eq!(timeout(Duration::from_secs(20), socket.read(&mut bytes)).await.unwrap().unwrap(), 0);
    }
}
