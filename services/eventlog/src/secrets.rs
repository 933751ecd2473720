//! The files with which a Kafka client logs in, and whether they have changed since it was made.
//!
//! librdkafka reads certificates and passwords once. A client that lives for longer than they do cannot connect any more, and says so only
//! when its connections break: so whoever has one makes another when the files change.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    time::{Duration, Instant},
};

use rand::RngExt;

use kith_kit::config::Kafka;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(10);
/// A change is told within so long: the files of all instances change at about the same time, and not all are to begin anew at once.
const SPREAD: Duration = Duration::from_secs(20);

/// The files of one client.
pub(super) struct LoginFiles {
    files: Vec<PathBuf>,
    /// What was in them when the client was made.
    read: Option<u64>,
    look_at: Instant,
    /// When a change that was seen is told.
    tell_at: Option<Instant>,
}

impl LoginFiles {
    /// As they are now, for a client that is made next.
    pub(super) fn of(kafka: &Kafka, now: Instant) -> Self {
        let tls = kafka.tls.iter().flat_map(|tls| [&tls.ca, &tls.cert, &tls.key]).flatten();
        let sasl = kafka.sasl.iter().flat_map(|sasl| [&sasl.username_file, &sasl.password_file]);
        let files: Vec<PathBuf> = tls.chain(sasl).cloned().collect();
        let read = contents(&files);
        Self { files, read, look_at: now + LOOK, tell_at: None }
    }

    /// Whether another client is to be made now; true until that has been done. Reads small files, seldom.
    pub(super) fn changed(&mut self, now: Instant) -> bool {
        if self.tell_at.is_none() && now >= self.look_at && !self.files.is_empty() {
            self.look_at = now + LOOK;
            // Files that cannot be read now may be on their way: the client lives on with what it has.
            if let Some(found) = contents(&self.files)
                && self.read != Some(found)
            {
                self.tell_at = Some(now + SPREAD.mul_f64(rand::rng().random_range(0.0..1.0)));
            }
        }
        self.tell_at.is_some_and(|at| now >= at)
    }
}

/// What the files hold, as one number; none when one cannot be read.
fn contents(files: &[PathBuf]) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).ok()?.hash(&mut hasher);
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_kit::config::KafkaSasl;

    #[test]
    fn a_change_of_any_file_is_told_once_it_is_whole_and_not_by_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (user, password) = (dir.path().join("username"), dir.path().join("password"));
        std::fs::write(&user, "kith").unwrap();
        std::fs::write(&password, "one").unwrap();
        let sasl = KafkaSasl { mechanism: "PLAIN".to_owned(), username_file: user, password_file: password.clone() };
        let kafka = Kafka {
            bootstrap: "127.0.0.1:1".to_owned(),
            tls: None,
            sasl: Some(sasl),
            replication_factor: 1,
            min_insync: 1,
        };
        let start = Instant::now();
        let mut files = LoginFiles::of(&kafka, start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!files.changed(at(60)), "nothing has changed");
        std::fs::remove_file(&password).unwrap();
        assert!(!files.changed(at(75)), "half of it is missing");
        std::fs::write(&password, "two").unwrap();
        let told: Vec<u64> = (90..120).filter(|s| files.changed(at(*s))).collect();
        assert!(told.first().is_some_and(|first| (90..=111).contains(first)), "{told:?}");
        assert!(files.changed(at(500)), "until another client is made");
        assert!(!LoginFiles::of(&kafka, at(500)).changed(at(600)));
    }

    #[test]
    fn a_client_without_a_login_never_begins_anew() {
        let kafka =
            Kafka { bootstrap: "127.0.0.1:1".to_owned(), tls: None, sasl: None, replication_factor: 1, min_insync: 1 };
        let start = Instant::now();
        assert!(!LoginFiles::of(&kafka, start).changed(start + Duration::from_secs(3_600)));
    }
}
