//! `POST /v1/push`: the gRPC message as a body.

use super::Shared;
use crate::node::intake::{Credentials, Refusal};
use crate::wire::MESSAGE_TYPE;
use crate::wire::proto::PushRequest;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::http::reply::{Problem, with_type};
use prost::Message;

pub(super) async fn push(State(site): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credentials = Credentials { authorization, certified: None };
    let request = match PushRequest::decode(body) {
        Ok(request) => request,
        Err(e) => return Problem::bad_request(format!("the body is no tidegate.v1.PushRequest: {e}")).into_response(),
    };
    match site.intake.push(credentials, request).await {
        Ok(reply) => with_type(reply.encode_to_vec(), MESSAGE_TYPE),
        Err(refusal) => problem(refusal),
    }
}

fn problem(refusal: Refusal) -> Response {
    let (status, text) = match refusal {
        Refusal::Invalid(text) => (StatusCode::BAD_REQUEST, text),
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
