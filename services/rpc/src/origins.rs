//! Which web pages may call: those of the host that is called, and those that are named.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Uri, header};

/// Origins that are allowed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    named: Arc<[String]>,
    everyone: bool,
}

impl Origins {
    /// Pages of the host itself, and of these origins (`https://chat.example.com`); `*` is everyone.
    pub fn new(named: &[String]) -> Self {
        let everyone = named.iter().any(|origin| origin == "*");
        Self { named: named.iter().map(|origin| plain(origin)).collect(), everyone }
    }

    /// Whether a page of `origin` may make a request with these headers to this address.
    pub fn allow(&self, origin: &HeaderValue, headers: &HeaderMap, uri: &Uri) -> bool {
        if self.everyone {
            return true;
        }
        let Ok(origin) = origin.to_str() else { return false };
        let origin = plain(origin);
        if self.named.contains(&origin) {
            return true;
        }
        let host = uri.authority().map(axum::http::uri::Authority::as_str);
        let host = host.or_else(|| headers.get(header::HOST).and_then(|h| h.to_str().ok()));
        // Whether the host was called by http or https is not known behind a proxy, so the default ports of both are left out.
        let page = origin.split_once("://").map(|(_, page)| without_port(page));
        page.is_some() && page == host.map(str::to_ascii_lowercase).as_deref().map(without_port)
    }

    /// Whether a request may be answered: it comes from no page, or from one that is allowed.
    pub fn allow_request(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        headers.get_all(header::ORIGIN).iter().all(|origin| self.allow(origin, headers, uri))
    }
}

/// An origin as it is compared.
fn plain(origin: &str) -> String {
    origin.trim_end_matches('/').to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    host.strip_suffix(":443").or_else(|| host.strip_suffix(":80")).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(named: &[&str], origin: &str, host: &str) -> bool {
        let named: Vec<String> = named.iter().map(|o| (*o).to_owned()).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::ORIGIN, origin.parse().unwrap());
        Origins::new(&named).allow_request(&headers, &Uri::from_static("/v1/me"))
    }

    #[test]
    fn without_a_list_only_pages_of_the_same_host_may_call() {
        assert!(allows(&[], "https://chat.example.com", "chat.example.com"));
        assert!(allows(&[], "https://Chat.example.com", "chat.example.com:443"));
        assert!(allows(&[], "http://127.0.0.1:8080", "127.0.0.1:8080"));
        for foreign in [
            "https://evil.example.com",
            "https://chat.example.com.evil.com",
            "http://127.0.0.1:8081",
            "null",
            "file://",
            "https://",
            "chat.example.com",
        ] {
            assert!(!allows(&[], foreign, "chat.example.com"), "{foreign}");
        }
        assert!(!allows(&[], "http://127.0.0.1:8081", "127.0.0.1:8080"), "another port is another origin");
    }

    #[test]
    fn named_pages_may_call_and_a_star_lets_everyone() {
        let named = ["https://app.example.org", "https://b.example.org/"];
        assert!(allows(&named, "https://app.example.org", "chat.example.com"));
        assert!(allows(&named, "https://B.example.org", "chat.example.com"));
        assert!(!allows(&named, "http://app.example.org", "chat.example.com"), "another scheme is another origin");
        assert!(allows(&["*"], "null", "chat.example.com"));
    }

    #[test]
    fn who_comes_from_no_page_may_call_and_the_name_of_http_2_counts_as_the_host() {
        let origins = Origins::new(&[]);
        assert!(origins.allow_request(&HeaderMap::new(), &Uri::from_static("/v1/me")));
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://chat.example.com"));
        assert!(origins.allow_request(&headers, &Uri::from_static("https://chat.example.com/v1/me")));
        assert!(!origins.allow_request(&headers, &Uri::from_static("/v1/me")), "a host that is not told is no host");
    }
}
