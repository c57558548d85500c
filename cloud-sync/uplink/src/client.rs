//! Endpoints: gRPC, or the same body over HTTP.
//!
//! `http://host:7443` and `https://host:7443` speak gRPC; a URL whose path is `/v1/push` takes
//! the message as the body of a POST. `?weight=2` gives an endpoint twice the share of others.

use prost::Message;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Status};
use wire::proto::uplink_client::UplinkClient;
use wire::proto::{PushReply, PushRequest};
use wire::{MESSAGE_MAX, MESSAGE_TYPE, PUSH_PATH, UNREADABLE, proto};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Where to push to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without the weight.
    pub url: String,
    /// Its share among others, at least 1.
    pub weight: u32,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL that we know how to push to.
    #[error(
        "{0:?} is no endpoint: write for example \"http://127.0.0.1:7443\" (gRPC), \"https://cloud.example:7443\", or \
         \"https://cloud.example:8090/v1/push\"; \"?weight=2\" behind it gives it twice the share"
    )]
    Url(String),
    /// A certificate or key.
    #[error("{path}: {what}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// For endpoints with TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that sign the endpoints' ones, in PEM; the system's without it.
    pub ca: Option<PathBuf>,
    /// This gateway's certificate and key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Url(text.into());
        let (url, weight) = match text.split_once('?') {
            None => (text, 1),
            Some((url, query)) => {
                let weight = query.strip_prefix("weight=").and_then(|weight| weight.parse().ok());
                (url, weight.filter(|&weight| weight > 0).ok_or_else(bad)?)
            }
        };
        let parsed = reqwest::Url::parse(url).map_err(|_| bad())?;
        let known = matches!(parsed.scheme(), "http" | "https") && matches!(parsed.path(), "/" | PUSH_PATH);
        if known && parsed.host_str().is_some() {
            Ok(Endpoint { url: url.trim_end_matches('/').to_owned(), weight })
        } else {
            Err(bad())
        }
    }
}

/// Why a push was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PushError {
    /// The endpoint does not answer, or cannot do it now: another may.
    Again(String),
    /// All of the cloud asks to wait.
    Later(Duration, String),
    /// The cloud will not take it from us.
    Refused(String),
    /// It is too large.
    TooLarge(String),
    /// The cloud has looked at it and cannot read what is in it.
    Unreadable(String),
}

impl PushError {
    pub(super) fn text(&self) -> &str {
        match self {
            PushError::Again(text)
            | PushError::Later(_, text)
            | PushError::Refused(text)
            | PushError::TooLarge(text)
            | PushError::Unreadable(text) => text,
        }
    }
}

/// One endpoint, connected when it is first used.
#[derive(Debug, Clone)]
pub(super) enum Client {
    Grpc { client: UplinkClient<Channel>, token: Option<MetadataValue<tonic::metadata::Ascii>>, timeout: Duration },
    Http { client: reqwest::Client, url: String, token: Option<String> },
}

impl Client {
    pub(super) fn new(
        endpoint: &Endpoint,
        tls: &Tls,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Url(endpoint.url.clone());
        if endpoint.url.ends_with(PUSH_PATH) {
            return Ok(Client::Http {
                client: http(tls, timeout)?,
                url: endpoint.url.clone(),
                token: token.map(|token| format!("Bearer {token}")),
            });
        }
        let mut channel = Channel::from_shared(endpoint.url.clone())
            .map_err(|_| bad())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if endpoint.url.starts_with("https") {
            channel = channel.tls_config(grpc_tls(tls)?).map_err(|_| bad())?;
        }
        let client = UplinkClient::new(channel.connect_lazy()).max_encoding_message_size(MESSAGE_MAX);
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose().map_err(|_| bad())?;
        Ok(Client::Grpc { client, token, timeout })
    }

    /// Pushes; the reply means that it is committed.
    pub(super) async fn push(&self, request: &PushRequest) -> Result<PushReply, PushError> {
        match self {
            Client::Grpc { client, token, timeout } => {
                let mut request = tonic::Request::new(request.clone());
                if let Some(token) = token {
                    request.metadata_mut().insert("authorization", token.clone());
                }
                let mut client = client.clone();
                match tokio::time::timeout(*timeout, client.push(request)).await {
                    Ok(Ok(reply)) => Ok(reply.into_inner()),
                    Ok(Err(status)) => Err(of_status(&status)),
                    Err(_) => Err(PushError::Again(format!("no answer within {timeout:?}"))),
                }
            }
            Client::Http { client, url, token } => {
                let mut post = client.post(url).header(CONTENT_TYPE, MESSAGE_TYPE).body(request.encode_to_vec());
                if let Some(token) = token {
                    post = post.header(AUTHORIZATION, token);
                }
                of_response(post.send().await.map_err(|e| PushError::Again(causes(&e)))?).await
            }
        }
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, EndpointError> {
    std::fs::read(path).map_err(|e| EndpointError::File { path: path.clone(), what: e.to_string() })
}

fn grpc_tls(tls: &Tls) -> Result<ClientTlsConfig, EndpointError> {
    let mut config = ClientTlsConfig::new();
    config = match &tls.ca {
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}

fn http(tls: &Tls, timeout: Duration) -> Result<reqwest::Client, EndpointError> {
    let wrong = |path: &PathBuf| {
        let path = path.clone();
        move |e: reqwest::Error| EndpointError::File { path, what: format!("is no PEM that can be used: {e}") }
    };
    let mut builder = reqwest::Client::builder().timeout(timeout).connect_timeout(CONNECT_TIMEOUT);
    if let Some(path) = &tls.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(wrong(path))?;
        builder = builder.tls_certs_only(certificates);
    }
    if let Some((certificate, key)) = &tls.identity {
        let mut pem = read(certificate)?;
        pem.extend(read(key)?);
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(wrong(certificate))?);
    }
    builder.build().map_err(|e| EndpointError::Url(causes(&e)))
}

fn of_status(status: &Status) -> PushError {
    let text = match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), causes(source)),
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::ResourceExhausted => {
            let ms = status.metadata().get("retry-after-ms").and_then(|ms| ms.to_str().ok()?.parse().ok());
            PushError::Later(Duration::from_millis(ms.unwrap_or(1_000)), text)
        }
        Code::OutOfRange => PushError::TooLarge(text),
        // What stands between may refuse with any code: only the cloud itself says this.
        Code::InvalidArgument if status.metadata().contains_key(UNREADABLE) => PushError::Unreadable(text),
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unauthenticated | Code::PermissionDenied => {
            PushError::Refused(text)
        }
        _ => PushError::Again(text),
    }
}

async fn of_response(response: reqwest::Response) -> Result<PushReply, PushError> {
    let status = response.status();
    let after = response.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    let body = response.bytes().await.map_err(|e| PushError::Again(causes(&e)))?;
    if status.is_success() {
        return proto::PushReply::decode(body).map_err(|e| PushError::Again(format!("the reply is none: {e}")));
    }
    // RFC 9457, if it is the cloud that speaks.
    let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    let text = format!("{status}: {}", detail.map_or_else(|| String::from_utf8_lossy(&body), Into::into));
    Err(match status.as_u16() {
        429 => PushError::Later(Duration::from_secs(after.unwrap_or(1)), text),
        413 => PushError::TooLarge(text),
        422 => PushError::Unreadable(text),
        400 | 401 | 403 | 409 | 415 => PushError::Refused(text),
        _ => PushError::Again(text),
    })
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_their_weights() {
        let endpoint = |text: &str| text.parse::<Endpoint>();
        assert_eq!(endpoint("http://127.0.0.1:7443/"), Ok(Endpoint { url: "http://127.0.0.1:7443".into(), weight: 1 }));
        let weighted = endpoint("https://cloud.example:8090/v1/push?weight=3");
        assert_eq!(weighted, Ok(Endpoint { url: "https://cloud.example:8090/v1/push".into(), weight: 3 }));
        for text in ["cloud:7443", "ftp://cloud", "http://cloud/elsewhere", "http://cloud?weight=0", ""] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
