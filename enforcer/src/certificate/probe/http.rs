//! The question that tells nginx's `ssl_verify_client on` from `optional`, and its answer.
//!
//! nginx accepts every client in TLS and checks the outcome when it has read the head of a request, before any
//! location or upstream sees it: without a certificate it answers 400 with a fixed sentence, or what the operator
//! made of its internal statuses 495 and 496. `OPTIONS` is safe by definition (RFC 9110, 9.2.1) and has no body.

use super::super::finding::Refused;

/// The question. Without a name the host is in a domain that exists nowhere (RFC 6761); nginx refuses a host of
/// another server than the handshake was with.
pub(super) fn request(host: Option<&str>) -> Vec<u8> {
    let host = host.unwrap_or("certificate-check.enforcer.invalid");
    format!(
        "OPTIONS / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: enforcer-certificate-check\r\n\
         Connection: close\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// As much of an answer as is looked at.
pub(super) const ANSWER_BYTES: usize = 4096;

/// The sentences of nginx's error pages for 496 and 495.
const SENTENCES: [&[u8]; 2] = [b"No required SSL certificate was sent", b"The SSL certificate error"];

/// Whether this HTTP answer, or the beginning of one, refuses the client for its certificate.
#[must_use]
pub fn certificate_refusal(answer: &[u8]) -> Option<Refused> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let [b'0' | b'1', b' ', hundreds, tens, ones, b' ' | b'\r', ..] = rest else {
        return None;
    };
    let digits = [hundreds, tens, ones];
    if !digits.iter().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(**digit - b'0'));
    let says_so =
        || SENTENCES.iter().any(|sentence| answer.windows(sentence.len()).any(|window| window == *sentence));
    match status {
        495 | 496 => Some(Refused::Http { status }),
        400 if says_so() => Some(Refused::Http { status }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificate_errors_are_refusals() {
        let page = |status: &str, title: &str| {
            format!("HTTP/1.1 {status} x\r\nServer: nginx\r\n\r\n<center><h1>400 {title}</h1></center>")
        };
        let missing = page("400", "No required SSL certificate was sent");
        let bad = page("400", "The SSL certificate error");
        for answer in [&missing, &bad] {
            assert_eq!(certificate_refusal(answer.as_bytes()), Some(Refused::Http { status: 400 }));
        }
        for (status, number) in [("495", 495), ("496", 496)] {
            let answer = page(status, "whatever");
            assert_eq!(certificate_refusal(answer.as_bytes()), Some(Refused::Http { status: number }));
        }
        for other in [
            page("400", "Bad Request"),
            page("200", "No required SSL certificate was sent"),
            page("403", "The SSL certificate error"),
            page("4x0", "The SSL certificate error"),
            missing.replace("HTTP/1.1", "HTTP/2.1"),
            missing.replace("HTTP/1.1 400", "HTTP/1.1 4000"),
            format!("x{missing}"),
            String::new(),
            "HTTP/1.1 400".to_owned(),
        ] {
            assert_eq!(certificate_refusal(other.as_bytes()), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_panic(answer in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = certificate_refusal(&answer);
            let mut with_prefix = b"HTTP/1.1 ".to_vec();
            with_prefix.extend(answer);
            let _ = certificate_refusal(&with_prefix);
        }
    }
}
