//! A request and its answer, for as long as they have the connection to themselves: what comes behind them stays with its
//! sender, but for a little, and a body that never ends does not keep the connection.
//!
//! actix reads what is left of a chunked body once nobody holds it any more, and waits for its end for as long as that takes.
//! While somebody holds it, an answer ends the connection, as it does where Content-Length tells what is missing.

use std::{
    cell::RefCell,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    HttpMessage,
    body::{BodySize, BoxBody, MessageBody},
    dev::{Payload, ServiceRequest},
    error::PayloadError,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::socket::Intake;

/// A request under way, from its head to the end of its answer.
pub(super) struct Exchange {
    intake: Rc<Intake>,
    /// Held, so that actix knows of what is missing.
    _body: SharedBody,
}

type SharedBody = Rc<RefCell<Payload>>;

/// The body of a request, for its handler.
struct Reader {
    intake: Rc<Intake>,
    body: SharedBody,
}

/// An answer, and with it the request, until it is sent.
pub(super) struct Sending {
    answer: BoxBody,
    _exchange: Exchange,
}

impl Exchange {
    /// To be called as soon as a request is there.
    pub(super) fn begin(request: &mut ServiceRequest) -> Self {
        let intake = request.conn_data::<Rc<Intake>>().cloned().unwrap_or_default();
        intake.begin();
        let body = Rc::new(RefCell::new(request.take_payload()));
        let reader = Reader { intake: intake.clone(), body: body.clone() };
        request.set_payload(Payload::Stream { payload: Box::pin(reader) });
        Self { intake, _body: body }
    }

    /// Ends once `answer` is sent or given up.
    pub(super) fn until_sent(self, answer: impl MessageBody + 'static) -> Sending {
        Sending { answer: answer.boxed(), _exchange: self }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.intake.end();
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.body.borrow_mut().poll_next_unpin(context);
        if next.is_pending() {
            self.intake.want_more();
        }
        next
    }
}

impl MessageBody for Sending {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.get_mut().answer.as_pin_mut().poll_next(context)
    }
}
