//! How one certificate authority takes the place of another: first everybody trusts both, then the new one signs, then the old one is
//! forgotten. Pure but for new keys.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{Authority, PkiError};

/// A file of a Secret is in every pod after so long, and read by whoever runs in it: a kubelet looks after 60 to 90 seconds, Valkey reads its
/// certificates every 60 seconds, services within ten.
const SPREAD_S: i64 = 180;
/// An authority that signs no more is trusted for so long: the longest life of a certificate that it has signed.
const TRUSTED_S: i64 = super::authority::LEAF_S;

const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_SINCE: &str = "next.since";
const NEXT_WAITS: &str = "next.waits";
const PREVIOUS: &str = "previous.crt";
const PREVIOUS_SINCE: &str = "previous.since";

/// What a person asks for, by annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Make the next authority and let everybody trust it; it does not sign before `Rotate`.
    Prepare,
    /// Let the next authority sign, as soon as everybody trusts it.
    Rotate,
    /// Trust those that sign no more no longer, as soon as no certificate of theirs is in use within the platform.
    Forget,
}

impl Asked {
    /// By its word; none for another.
    pub fn read(word: &str) -> Option<Self> {
        Some(match word {
            "prepare" => Self::Prepare,
            "now" => Self::Rotate,
            "forget-previous" => Self::Forget,
            _ => return None,
        })
    }
}

/// What a step came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What changed, for an Event.
    pub changed: Option<&'static str>,
    /// Whether what was asked for is under way or done, so that it is not to be asked for again.
    pub answered: bool,
}

/// The authority that signs, the one that will, and those that did.
pub struct Authorities {
    /// The one that signs.
    pub signing: Authority,
    next: Option<Next>,
    previous: Option<Previous>,
}

struct Next {
    authority: Authority,
    since_s: i64,
    waits: bool,
}

struct Previous {
    /// Certificates, one after the other.
    pem: String,
    since_s: i64,
}

impl Authorities {
    /// A first authority.
    pub fn generate(cluster_name: &str, uid: &str, now: Timestamp) -> Result<Self, PkiError> {
        Ok(Self { signing: Authority::generate(cluster_name, uid, now)?, next: None, previous: None })
    }

    /// Reads the files of the Secret.
    pub fn load(file: impl Fn(&str) -> Option<String>) -> Result<Self, PkiError> {
        let text = |name| file(name).unwrap_or_default();
        let since = |name| {
            let text = text(name);
            text.trim().parse().map_err(|_| PkiError::read("certificate authority", format!("{name} is no time")))
        };
        let signing = Authority::load(&text("ca.crt"), &text("ca.key"))?;
        let next = match file(NEXT_CERT) {
            None => None,
            Some(cert) => Some(Next {
                authority: Authority::load(&cert, &text(NEXT_KEY))?,
                since_s: since(NEXT_SINCE)?,
                waits: text(NEXT_WAITS) == "true",
            }),
        };
        let previous = match file(PREVIOUS) {
            None => None,
            Some(pem) => Some(Previous { pem, since_s: since(PREVIOUS_SINCE)? }),
        };
        Ok(Self { signing, next, previous })
    }

    /// The files of the Secret.
    pub fn files(&self) -> BTreeMap<String, String> {
        let mut files: Vec<(&str, String)> = vec![
            ("ca.crt", self.signing.cert_pem.clone()),
            ("ca.key", self.signing.key_pem.clone()),
            // For people; and it changes with every step, so that a file that goes is a change like any other.
            ("trusted.crt", self.trusted()),
        ];
        if let Some(next) = &self.next {
            files.push((NEXT_CERT, next.authority.cert_pem.clone()));
            files.push((NEXT_KEY, next.authority.key_pem.clone()));
            files.push((NEXT_SINCE, next.since_s.to_string()));
            files.push((NEXT_WAITS, next.waits.to_string()));
        }
        if let Some(previous) = &self.previous {
            files.push((PREVIOUS, previous.pem.clone()));
            files.push((PREVIOUS_SINCE, previous.since_s.to_string()));
        }
        files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
    }

    /// What everybody trusts: the certificates of all, the one that signs first.
    pub fn trusted(&self) -> String {
        let next = self.next.as_ref().map(|next| next.authority.cert_pem.as_str());
        let previous = self.previous.as_ref().map(|previous| previous.pem.as_str());
        let mut all = String::new();
        for pem in [Some(self.signing.cert_pem.as_str()), next, previous].into_iter().flatten() {
            all.push_str(pem);
            if !all.ends_with('\n') {
                all.push('\n');
            }
        }
        all
    }

    /// One step. `spread` says that whoever has to be started anew to read a certificate has been. `make` makes another authority.
    pub fn step(
        &mut self,
        asked: Option<Asked>,
        spread: bool,
        make: impl FnOnce() -> Result<Authority, PkiError>,
        now: Timestamp,
    ) -> Result<Step, PkiError> {
        let now_s = now.as_second();
        let everywhere = |since_s: i64| spread && now_s >= since_s.saturating_add(SPREAD_S);
        match (&mut self.next, asked) {
            (Some(next), _) if everywhere(next.since_s) && (!next.waits || asked == Some(Asked::Rotate)) => {
                let Some(next) = self.next.take() else { return Ok(Step::default()) };
                let before = std::mem::replace(&mut self.signing, next.authority);
                let mut pem = before.cert_pem;
                pem.push_str(self.previous.as_ref().map_or("", |previous| &previous.pem));
                self.previous = Some(Previous { pem, since_s: now_s });
                let changed = Some("the next certificate authority signs from now on; the one before stays trusted");
                return Ok(Step { changed, answered: matches!(asked, Some(Asked::Rotate | Asked::Prepare)) });
            }
            (Some(next), Some(Asked::Rotate)) => {
                // It signs as soon as it may, whoever asks again or not.
                next.waits = false;
                return Ok(Step { changed: None, answered: true });
            }
            (Some(_), Some(Asked::Prepare)) => return Ok(Step { changed: None, answered: true }),
            (Some(_), _) => {}
            (None, asked) if matches!(asked, Some(Asked::Prepare | Asked::Rotate)) || self.signing.is_near_end(now) => {
                let waits = asked == Some(Asked::Prepare);
                self.next = Some(Next { authority: make()?, since_s: now_s, waits });
                let changed = Some("made the next certificate authority; it signs when everybody trusts it");
                return Ok(Step { changed, answered: asked.is_some_and(|asked| asked != Asked::Forget) });
            }
            (None, _) => {}
        }
        let Some(previous) = &self.previous else {
            return Ok(Step { changed: None, answered: asked == Some(Asked::Forget) });
        };
        let over = now_s >= previous.since_s.saturating_add(TRUSTED_S);
        if over || (asked == Some(Asked::Forget) && everywhere(previous.since_s)) {
            self.previous = None;
            let changed = Some("the certificate authority before is trusted no longer");
            return Ok(Step { changed, answered: asked == Some(Asked::Forget) });
        }
        Ok(Step::default())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;
    use crate::pki::{LeafRequest, Renewal};

    const DAY_S: i64 = 86_400;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    fn made(seconds: i64) -> Result<Authority, PkiError> {
        Authority::generate("demo", "u-1", at(seconds))
    }

    fn stored(all: &Authorities) -> Authorities {
        let files = all.files();
        Authorities::load(|name| files.get(name).cloned()).unwrap()
    }

    fn request() -> LeafRequest {
        LeafRequest { uri: "kith://u-1/service/storage".to_owned(), dns: vec!["a".to_owned()], addresses: Vec::new() }
    }

    /// How many authorities are trusted.
    fn trusted(all: &Authorities) -> usize {
        all.trusted().matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn another_authority_signs_only_when_everybody_trusts_it_and_the_one_before_stays_trusted_as_long_as_its_certificates_live()
     {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        let leaf = all.signing.issue(&request(), at(0)).unwrap();
        let first = all.signing.cert_pem.clone();
        assert_eq!(all.step(None, true, || made(0), at(1)).unwrap(), Step::default());
        let begun = all.step(Some(Asked::Rotate), true, || made(10), at(10)).unwrap();
        assert!(begun.answered && begun.changed.is_some());
        let mut all = stored(&all);
        assert_eq!((all.signing.cert_pem == first, trusted(&all)), (true, 2), "it is trusted before it signs");
        for (seconds, spread) in [(20, true), (10 + SPREAD_S - 1, true), (10 + SPREAD_S, false)] {
            assert_eq!(all.step(None, spread, || made(0), at(seconds)).unwrap(), Step::default(), "{seconds}");
        }
        assert!(all.step(None, true, || made(0), at(10 + SPREAD_S)).unwrap().changed.is_some());
        let mut all = stored(&all);
        assert_eq!((all.signing.cert_pem != first, trusted(&all)), (true, 2));
        assert!(all.trusted().contains(first.trim_end()));
        let renewal = all.signing.examine(&leaf, &request(), at(200));
        assert_eq!(renewal, Renewal::Renew("it was signed by another authority"));
        let begin = 10 + SPREAD_S;
        assert_eq!(all.step(None, true, || made(0), at(begin + 89 * DAY_S)).unwrap(), Step::default());
        assert!(all.step(None, true, || made(0), at(begin + 91 * DAY_S)).unwrap().changed.is_some());
        assert_eq!(trusted(&all), 1);
    }

    #[test]
    fn an_authority_that_is_only_prepared_waits_for_a_word() {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        all.step(Some(Asked::Prepare), true, || made(0), at(0)).unwrap();
        let first = all.signing.cert_pem.clone();
        let mut all = stored(&all);
        assert_eq!(all.step(None, true, || made(0), at(DAY_S)).unwrap(), Step::default());
        assert_eq!((trusted(&all), all.signing.cert_pem == first), (2, true));
        assert!(all.step(Some(Asked::Prepare), true, || made(0), at(DAY_S)).unwrap().answered, "made already");
        let rotated = all.step(Some(Asked::Rotate), true, || made(0), at(DAY_S)).unwrap();
        assert!(rotated.answered && all.signing.cert_pem != first);
    }

    #[test]
    fn the_one_before_is_forgotten_on_demand_but_never_while_its_certificates_are_in_use() {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        assert!(all.step(Some(Asked::Forget), true, || made(0), at(0)).unwrap().answered, "there is none");
        all.step(Some(Asked::Rotate), true, || made(0), at(0)).unwrap();
        all.step(None, true, || made(0), at(SPREAD_S)).unwrap();
        for (seconds, spread) in [(SPREAD_S + 1, true), (2 * SPREAD_S, false)] {
            let step = all.step(Some(Asked::Forget), spread, || made(0), at(seconds)).unwrap();
            assert_eq!(step, Step::default(), "it is asked for until it may be");
        }
        assert!(all.step(Some(Asked::Forget), true, || made(0), at(2 * SPREAD_S)).unwrap().answered);
        assert_eq!(trusted(&all), 1);
    }

    #[test]
    fn two_changes_in_a_row_keep_both_that_came_before() {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        for begin in [0, 1_000] {
            all.step(Some(Asked::Rotate), true, || made(begin), at(begin)).unwrap();
            all.step(None, true, || made(begin), at(begin + SPREAD_S)).unwrap();
            all = stored(&all);
        }
        assert_eq!(trusted(&all), 3);
    }

    #[test]
    fn an_authority_near_its_end_is_followed_by_another_without_being_asked() {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        let late = at(0) + SignedDuration::from_secs(3_000 * DAY_S);
        assert!(all.step(None, true, || Authority::generate("demo", "u-1", late), late).unwrap().changed.is_some());
        assert_eq!(trusted(&all), 2);
    }

    #[test]
    fn damaged_files_are_named() {
        let mut all = Authorities::generate("demo", "u-1", at(0)).unwrap();
        all.step(Some(Asked::Rotate), true, || made(0), at(0)).unwrap();
        let mut files = all.files();
        files.insert(NEXT_SINCE.to_owned(), "soon".to_owned());
        let refused = Authorities::load(|name| files.get(name).cloned()).err().unwrap();
        assert!(refused.to_string().contains("next.since is no time"), "{refused}");
    }
}
