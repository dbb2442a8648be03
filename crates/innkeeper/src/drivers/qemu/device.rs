//! One device as QEMU is told it: at the start by an argument, later by a command. Both are made of the same properties.

use serde_json::{Map, Value, json};

use super::arguments::Options;

/// A device with its properties, in the order in which they were set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Device {
    driver: String,
    id: String,
    bus: Option<String>,
    properties: Vec<(&'static str, Value)>,
}

impl Device {
    /// Begins a device; its id is unique in the machine.
    pub(super) fn new(driver: impl Into<String>, id: impl Into<String>) -> Self {
        Device {
            driver: driver.into(),
            id: id.into(),
            bus: None,
            properties: Vec::new(),
        }
    }

    /// Puts it on a bus by name; without one QEMU takes the first that fits.
    pub(super) fn on(mut self, bus: Option<impl Into<String>>) -> Self {
        self.bus = bus.map(Into::into);
        self
    }

    /// Sets a property, typed as the driver has it: QEMU refuses a number or a switch that is written as a string.
    pub(super) fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.properties.push((key, value.into()));
        self
    }

    /// Returns the value of `-device`.
    pub(super) fn option(&self) -> String {
        let mut option = Options::new(&self.driver).set("id", &self.id);
        if let Some(bus) = &self.bus {
            option = option.set("bus", bus);
        }
        for (key, value) in &self.properties {
            option = match value {
                Value::Bool(on) => option.set(key, if *on { "on" } else { "off" }),
                Value::String(text) => option.set(key, text),
                other => option.set(key, other.to_string()),
            };
        }
        option.build()
    }

    /// Returns the arguments of `device_add`.
    pub(super) fn arguments(&self) -> Value {
        let mut arguments = Map::new();
        arguments.insert("driver".to_owned(), json!(self.driver));
        arguments.insert("id".to_owned(), json!(self.id));
        if let Some(bus) = &self.bus {
            arguments.insert("bus".to_owned(), json!(bus));
        }
        for (key, value) in &self.properties {
            arguments.insert((*key).to_owned(), value.clone());
        }
        Value::Object(arguments)
    }

    /// Returns the bus that it was put on, if that was not left to QEMU.
    pub(super) fn bus(&self) -> Option<&str> {
        self.bus.as_deref()
    }

    /// Says what it is and where, in a form that is kept with a saved machine.
    pub(super) fn summary(&self) -> String {
        summary(&self.id, &self.driver, self.bus.as_deref())
    }
}

/// Says what a device is and where.
pub(super) fn summary(id: &str, driver: &str, bus: Option<&str>) -> String {
    match bus {
        Some(bus) => format!("{id} {driver} {bus}"),
        None => format!("{id} {driver}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let device = Device::new("nvme", "disk-a")
            .on(Some("port1"))
            .set("serial", "a,b")
            .set("bootindex", 3)
            .set("share", true);
        assert_eq!(
            device.option(),
            "nvme,id=disk-a,bus=port1,serial=a,,b,bootindex=3,share=on"
        );
        assert_eq!(
            device.arguments(),
            json!({ "driver": "nvme", "id": "disk-a", "bus": "port1", "serial": "a,b", "bootindex": 3, "share": true })
        );
        assert_eq!(device.summary(), "disk-a nvme port1");
    }
}
