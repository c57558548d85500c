//! What a browser may do on behalf of a page from elsewhere: nothing, unless the configuration says so.
//!
//! Arrives: the heads of requests. Leaves: a refusal, or the headers that an answer needs. Always holds: a
//! request from another origin changes nothing and reads nothing (Fetch, "CORS protocol"); a name that this
//! machine does not have, which a page has had resolved to it (DNS rebinding), leads nowhere without
//! credentials; no answer is taken for another type than it says.

use super::reply::Problem;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// Which names and origins are ours.
#[derive(Debug, Clone, Default)]
pub struct Web {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Web {
    /// Names beside this machine's own, and origins whose pages may read and write.
    pub fn new(hosts: &[String], origins: &[String]) -> Self {
        let lower =
            |texts: &[String]| texts.iter().map(|text| text.trim_end_matches('/').to_ascii_lowercase()).collect();
        Web { hosts: lower(hosts), origins: lower(origins) }
    }

    /// Refuses what a page from elsewhere must not do; `known` says that right credentials were shown, or that
    /// the name by which this machine was called does not matter.
    pub fn check(&self, method: &Method, headers: &HeaderMap, known: bool) -> Result<(), Problem> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = text(header::HOST).map(str::to_ascii_lowercase);
        if !known && host.as_deref().is_some_and(|host| !self.is_ours(host)) {
            let detail = "this machine is not known by that name: use its address, or add the name to http.hosts";
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
        }
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(());
        }
        let foreign = match text(header::ORIGIN) {
            Some(origin) => !self.is_origin(origin, host.as_deref()),
            None => matches!(text(header::HeaderName::from_static("sec-fetch-site")), Some("cross-site" | "same-site")),
        };
        if foreign {
            let detail = "a page from elsewhere may change nothing here: add its origin to http.origins to let it";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host
                .rsplit_once(':')
                .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
                .map_or(host, |(name, _)| name),
        };
        let name = name.trim_end_matches('.');
        let own = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let is_own = !own.is_empty() && (name == own || name.strip_suffix(".local") == Some(own.as_str()));
        name.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || is_own
            || self.hosts.iter().any(|known| known == name)
    }

    fn is_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let origin = origin.to_ascii_lowercase();
        let own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
        own || self.origins.iter().any(|known| *known == origin || known == "*")
    }

    /// The answer to a preflight, if this is one from an origin that may ask.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        let asks = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let origin = self.allowed(headers).filter(|_| asks)?;
        let mut response = StatusCode::NO_CONTENT.into_response();
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE"));
        answer.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, accept"),
        );
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        answer.insert(header::VARY, HeaderValue::from_static("Origin"));
        Some(response)
    }

    /// Adds what every answer says to a browser.
    pub fn finish(&self, origin: Option<HeaderValue>, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Link"));
        }
    }

    /// The origin of a request, if the configuration names it.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins.iter().any(|known| *known == text || known == "*").then(|| origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_page_from_elsewhere_changes_nothing() {
        let web = Web::new(&["pi.example".into()], &["https://dash.example".into()]);
        let check = |method: Method, pairs: &[_]| web.check(&method, &headers(pairs), false).is_ok();
        assert!(check(Method::POST, &[("host", "127.0.0.1:8080")]));
        assert!(check(Method::POST, &[("host", "[::1]:8080"), ("origin", "http://[::1]:8080")]));
        assert!(check(Method::POST, &[("host", "pi.example"), ("origin", "https://dash.example")]));
        assert!(!check(Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "http://evil.example")]));
        assert!(!check(Method::POST, &[("host", "127.0.0.1:8080"), ("origin", "null")]));
        assert!(!check(Method::PUT, &[("host", "localhost"), ("sec-fetch-site", "cross-site")]));
        assert!(check(Method::GET, &[("host", "localhost:8080"), ("origin", "http://evil.example")]));
        assert!(!check(Method::GET, &[("host", "rebound.example:8080")]));
        assert!(web.check(&Method::GET, &headers(&[("host", "rebound.example")]), true).is_ok());
    }

    #[test]
    fn only_origins_that_are_named_are_told_that_they_may() {
        let web = Web::new(&[], &["https://dash.example".into()]);
        let ask = |origin| {
            web.preflight(&Method::OPTIONS, &headers(&[("origin", origin), ("access-control-request-method", "POST")]))
        };
        assert_eq!(ask("https://dash.example").unwrap().status(), StatusCode::NO_CONTENT);
        assert!(ask("https://evil.example").is_none());
    }
}
