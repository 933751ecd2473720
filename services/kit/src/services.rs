//! Where the services are found that others call: the section `services` of the configuration, one entry for each that the platform's table
//! says others call.

use std::{collections::BTreeMap, fmt};

use kith_platform as platform;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// How to find the instances of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `dns:<host>:<port>` (every address of a headless Service), `static:<addr>,<addr>` or `file:<path>` (one address a line, re-read
    /// when it changes).
    pub endpoints: String,
}

/// The services that others call, in the order of the table. One that a later version brought may be absent: who calls it does not start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services(BTreeMap<platform::Service, Service>);

impl Services {
    /// All of them, each found by the endpoints that `found` gives it.
    pub fn all(found: impl Fn(platform::Service) -> String) -> Self {
        platform::Service::called_by_others().map(|service| (service, found(service))).collect()
    }

    /// How to find a service, if this configuration tells.
    pub fn get(&self, service: platform::Service) -> Option<&Service> {
        self.0.get(&service)
    }
}

impl FromIterator<(platform::Service, String)> for Services {
    fn from_iter<T: IntoIterator<Item = (platform::Service, String)>>(services: T) -> Self {
        Self(services.into_iter().map(|(service, endpoints)| (service, Service { endpoints })).collect())
    }
}

impl Serialize for Services {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(service, found)| (service.field(), found)))
    }
}

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Services;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("services by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Services, A::Error> {
        let mut services = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            match platform::Service::called_by_others().find(|service| service.field() == name) {
                Some(service) => drop(services.insert(service, map.next_value()?)),
                // Of a later version: it is told of like any other field that is not known here.
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Services(services))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_stands_in_the_order_of_the_table() {
        let services = Services::all(|service| format!("static:{}", service.name()));
        let text = serde_json::to_string(&services).unwrap();
        let places: Vec<_> = platform::Service::called_by_others().map(|s| text.find(&s.field()).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        assert_eq!(serde_json::from_str::<Services>(&text).unwrap(), services);
        for service in platform::Service::ALL {
            assert_eq!(services.get(*service).is_some(), service.rpcs().is_some(), "{}", service.name());
        }
        assert!(serde_json::from_str::<Services>("{\"storage\": {}}").is_err(), "no endpoints");
    }
}
