//! What an operator brings: its version of Kith and the one before, and which of them a ChatCluster runs. Pure.

use clap::Args;
use kith_crds::{
    ChatCluster,
    chatcluster::Images,
    conditions::{self, Finding, reason},
    names,
};
use kube::ResourceExt;

use crate::render::versions::{self, PREVIOUS};

/// The images to run, by flag or environment.
#[derive(Debug, Clone, Args)]
pub struct ReleaseArgs {
    /// Image of the services.
    #[arg(long, env = "KITH_IMAGE")]
    pub kith_image: String,
    /// Image of the storage engine.
    #[arg(long, env = "KITH_VALKEY_IMAGE")]
    pub valkey_image: String,
    /// Image of the managed event log.
    #[arg(long, env = "KITH_KAFKA_IMAGE")]
    pub kafka_image: String,
    /// The version before, if its images are there; empty: no ChatCluster is taken to it.
    #[arg(long, env = "KITH_PREVIOUS_VERSION", default_value = "", value_parser = ["", PREVIOUS])]
    pub previous_version: String,
    /// Image of the services of the version before; empty: that of the services with its tag.
    #[arg(long, env = "KITH_PREVIOUS_IMAGE", default_value = "")]
    pub previous_kith_image: String,
    /// Image of its storage engine; empty: the same as this version's.
    #[arg(long, env = "KITH_PREVIOUS_VALKEY_IMAGE", default_value = "")]
    pub previous_valkey_image: String,
    /// Image of its managed event log; empty: the same as this version's.
    #[arg(long, env = "KITH_PREVIOUS_KAFKA_IMAGE", default_value = "")]
    pub previous_kafka_image: String,
}

impl ReleaseArgs {
    /// What these images make of this operator.
    pub fn release(&self) -> Release {
        let named = |image: &str, else_: String| if image.is_empty() { else_ } else { image.to_owned() };
        let previous_images = || Images {
            kith: named(&self.previous_kith_image, with_tag(&self.kith_image, PREVIOUS)),
            valkey: named(&self.previous_valkey_image, self.valkey_image.clone()),
            kafka: named(&self.previous_kafka_image, self.kafka_image.clone()),
        };
        Release {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            images: Images {
                kith: self.kith_image.clone(),
                valkey: self.valkey_image.clone(),
                kafka: self.kafka_image.clone(),
            },
            previous_version: PREVIOUS.to_owned(),
            previous_images: (!self.previous_version.is_empty()).then(previous_images),
        }
    }
}

/// The image of the same repository with another tag.
fn with_tag(image: &str, tag: &str) -> String {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    let repository = match named.rsplit_once(':') {
        // Else it is the port of a registry.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => named,
    };
    format!("{repository}:{tag}")
}

/// What this operator brings: its version and the one before, each with its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The operator's version.
    pub version: String,
    /// The images of that version.
    pub images: Images,
    /// The version before.
    pub previous_version: String,
    /// Its images; none when the operator was not told them.
    pub previous_images: Option<Images>,
}

impl Release {
    /// The images of a version, if there are any here.
    fn images_of(&self, version: &str) -> Option<&Images> {
        if version == self.version {
            Some(&self.images)
        } else {
            self.previous_images.as_ref().filter(|_| version == self.previous_version)
        }
    }

    /// That a version cannot be gone to, and what to do instead.
    fn refusal(&self, wanted: &str) -> Finding {
        let (present, previous) = (&self.version, &self.previous_version);
        if wanted == previous {
            return unsupported(format!(
                "this operator runs versions {present} and {previous}, but was not told the images of {previous}: \
                 set previous.version of its chart, or ask for {present}"
            ));
        }
        unsupported(format!(
            "version {wanted} is not one that this operator runs, {present} and {previous}: \
             install the operator of that version, or change or remove spec.version"
        ))
    }

    /// Whether the way between two versions leads over another: the data of one are read by the versions before and after it alone.
    fn over(&self, from: &str, to: &str) -> Option<&str> {
        let (from, present) = (versions::numbers(from)?, versions::numbers(&self.version)?);
        let previous = versions::numbers(&self.previous_version)?;
        match versions::numbers(to)? {
            to if to == present && from < previous => Some(&self.previous_version),
            to if to == previous && from > present => Some(&self.version),
            _ => None,
        }
    }
}

fn unsupported(message: String) -> Finding {
    Finding::fails(conditions::READY, reason::UNSUPPORTED_VERSION, message)
}

/// The version and images that run: the adopted ones, until the spec names another version or a person asks for the operator's.
pub fn adopt(cluster: &ChatCluster, release: &Release) -> Result<(String, Images), Finding> {
    let asked = cluster.annotations().get(names::ANNOTATION_ADOPT_IMAGES).is_some_and(|v| v == "now");
    let status = cluster.status.as_ref();
    let adopted = status.and_then(|s| Some((s.version.clone()?, s.images.clone()?)));
    let wanted = match (&cluster.spec.version, &adopted) {
        (Some(version), _) => version.as_str(),
        (None, Some((version, _))) if !asked => version.as_str(),
        (None, _) => release.version.as_str(),
    };
    let offered = release.images_of(wanted);
    if let Some((version, images)) = &adopted {
        if version == wanted && !(asked && offered.is_some()) {
            return Ok((version.clone(), images.clone()));
        }
        if let Some(between) = release.over(version, wanted) {
            return Err(unsupported(format!(
                "the way from version {version} to {wanted} leads over {between}: set spec.version to {between} first"
            )));
        }
    }
    let images = offered.ok_or_else(|| release.refusal(wanted))?;
    Ok((wanted.to_owned(), images.clone()))
}

#[cfg(test)]
mod tests;
