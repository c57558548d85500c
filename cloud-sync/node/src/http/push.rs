//! `POST /v1/push`: the gRPC message as a body.

use super::{Shared, Site};
use crate::door::{self, PUSH_TIMEOUT};
use crate::intake::Refusal;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::http::reply::{Problem, with_type};
use daemon::http::serve::Certificates;
use daemon::seats::address_name;
use prost::Message;
use std::net::SocketAddr;
use wire::proto::{PushReply, PushRequest};
use wire::{MESSAGE_MAX, MESSAGE_TYPE};

pub(super) async fn push(State(site): State<Shared>, request: Request) -> Response {
    match tokio::time::timeout(PUSH_TIMEOUT, take(&site, request)).await {
        Ok(Ok(reply)) => with_type(reply.encode_to_vec(), MESSAGE_TYPE),
        Ok(Err(refusal)) => problem(refusal.counted(&site.metrics)),
        Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "the push took too long: try again").into_response(),
    }
}

async fn take(site: &Site, request: Request) -> Result<PushReply, Refusal> {
    let chain = request.extensions().get::<Certificates>().cloned();
    let from =
        request.extensions().get::<ConnectInfo<SocketAddr>>().map_or_else(String::new, |from| address_name(from.ip()));
    let who = site.door.identify(request.headers(), chain.as_ref().map(|chain| &*chain.0), &from).await?;
    let share = site.door.share();
    let message = PushRequest::decode(door::read(request.into_body(), MESSAGE_MAX, &share).await?)
        .map_err(|e| Refusal::Invalid(format!("the body is no tidegate.v1.PushRequest: {e}")))?;
    site.intake.push(&who, message).await
}

fn problem(refusal: Refusal) -> Response {
    let (status, text) = match refusal {
        Refusal::Invalid(text) => (StatusCode::BAD_REQUEST, text),
        Refusal::TooLarge(text) => (StatusCode::PAYLOAD_TOO_LARGE, text),
        Refusal::Unreadable(text) => (StatusCode::UNPROCESSABLE_ENTITY, text),
        Refusal::Unauthenticated(text) => (StatusCode::UNAUTHORIZED, text),
        Refusal::Forbidden(text) => (StatusCode::FORBIDDEN, text),
        Refusal::Conflict(text) => (StatusCode::CONFLICT, text),
        Refusal::Unavailable(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
        Refusal::Busy(after) => {
            let text = "too many pushes at once: try again later";
            let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, text).into_response();
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
            return response;
        }
    };
    Problem::new(status, text).into_response()
}
