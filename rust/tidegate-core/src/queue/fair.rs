//! Start-time fair queueing: flows that have something waiting share what is admitted, in proportion to their weights.
//!
//! Each flow has a *start tag* a band: how far it has been served, in units of cost by weight. The flow with the least tag goes
//! next, and its tag moves on by what that took. The *virtual time* of a lane (a backend, to the engine) is the tag of what went there
//! last; a flow that had nothing waiting starts from there, so that it neither saves up nor owes for the time it was away. While two flows
//! both wait for one lane, whatever rate it serves at, what they get by weight differs by at most one request of each.
//!
//! A tag belongs to the flow and not to each request: what is cancelled or expires takes no share with it.
//!
//! Source: Goyal, Vin, Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated Services Packet Switching Networks",
//! SIGCOMM 1996.

use std::collections::{BTreeSet, HashMap};

use super::{Key, Place};

/// Virtual time that a unit of cost takes of a flow of weight 1. Lighter flows down to a thousandth then stay far from the end of 64
/// bits, and heavier ones up to a thousand are told apart to a tenth of a per cent.
const UNIT: f64 = (1 << 20) as f64;
/// Flows with nothing waiting that are remembered, for what they have been served in advance.
const MOST_AWAY: usize = 65_536;

/// A flow among those that wait for the same lanes. It is forgotten when it has no queue and is owed nothing.
#[derive(Debug)]
struct Flow {
    name: Box<str>,
    /// Which lanes, as one number.
    set: u32,
    lanes: Box<[u16]>,
    /// Virtual time that a unit of cost takes.
    unit: u64,
    bands: Vec<Tag>,
    /// Its queues: the cost of the requests in it, and its number.
    queues: BTreeSet<(u32, u32)>,
}

/// One flow in one band.
#[derive(Clone, Copy, Debug)]
struct Tag {
    band: u8,
    /// Where its next request starts.
    start: u64,
    waiting: u32,
}

/// One band of one lane.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// The virtual time: the largest start tag that was served.
    now: u64,
    /// The largest tag of the end of what was served: where all flows start when none has waited.
    end: u64,
    waiting: u32,
}

impl Lane {
    fn time(&self) -> u64 {
        if self.waiting == 0 { self.end } else { self.now }
    }
}

/// The flows of a queue, by number. Lanes are numbered from 0.
#[derive(Debug, Default)]
pub struct Flows {
    units: HashMap<Box<str>, u64>,
    /// By name, the flows of that name: set and number.
    ids: HashMap<Box<str>, Vec<(u32, u32)>>,
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    /// By lane, then by band.
    lanes: Vec<Box<[Lane; 256]>>,
    /// Flows without a queue.
    away: usize,
    /// So many of these are looked through for what can be forgotten.
    crowd: usize,
}

impl Flows {
    /// No flow yet; those that are named here have these weights, > 0, and all others 1.
    pub fn new(weights: &[(Box<str>, f64)]) -> Flows {
        let unit = |weight: f64| ((UNIT / weight).round() as u64).max(1);
        Flows { units: weights.iter().map(|(name, weight)| (name.clone(), unit(*weight))).collect(), ..Flows::default() }
    }

    /// The flow of this name among those that wait for `lanes`, whose number is `set`. It is to be given a queue.
    pub fn flow(&mut self, name: &str, set: u32, lanes: &[u16]) -> u32 {
        let known = self.ids.get(name).and_then(|named| named.iter().find(|(theirs, _)| *theirs == set));
        if let Some(&(_, id)) = known {
            return id;
        }
        self.make_lanes(lanes);
        let unit = self.units.get(name).copied().unwrap_or(UNIT as u64);
        let flow = Flow { name: name.into(), set, lanes: lanes.into(), unit, bands: Vec::new(), queues: BTreeSet::new() };
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            (self.flows.len() - 1) as u32
        });
        self.flows[id as usize] = Some(flow);
        self.ids.entry(name.into()).or_default().push((set, id));
        self.away += 1;
        id
    }

    /// A flow waits for other lanes from now on, `set` by number.
    pub fn relane(&mut self, flow: u32, set: u32, others: &[u16]) {
        self.make_lanes(others);
        let Flows { flows, lanes, ids, .. } = self;
        let id = flow;
        let flow = flows[flow as usize].as_mut().expect("a flow with a queue is known");
        let before = std::mem::replace(&mut flow.lanes, others.into());
        for tag in &flow.bands {
            for &lane in &before {
                lanes[usize::from(lane)][usize::from(tag.band)].waiting -= tag.waiting;
            }
            for &lane in others {
                lanes[usize::from(lane)][usize::from(tag.band)].waiting += tag.waiting;
            }
        }
        flow.set = set;
        for named in ids.get_mut(&flow.name).into_iter().flatten().filter(|named| named.1 == id) {
            named.0 = set;
        }
    }

    fn make_lanes(&mut self, lanes: &[u16]) {
        let most = lanes.iter().max().map_or(0, |&lane| usize::from(lane) + 1);
        while self.lanes.len() < most {
            self.lanes.push(Box::new([Lane::default(); 256]));
        }
    }

    fn get(&self, flow: u32) -> &Flow {
        self.flows[flow as usize].as_ref().expect("a flow with a queue is known")
    }

    /// The queues of a flow for requests of this cost.
    pub fn queues(&self, flow: u32, cost: u32) -> impl Iterator<Item = u32> + '_ {
        self.get(flow).queues.range((cost, 0)..=(cost, u32::MAX)).map(|(_, queue)| *queue)
    }

    /// The queues of a flow for requests that cost more than one.
    pub fn costly_queues(&self, flow: u32) -> impl Iterator<Item = u32> + '_ {
        self.get(flow).queues.range((2, 0)..).map(|(_, queue)| *queue)
    }

    /// Gives a flow a queue for requests of this cost.
    pub fn open(&mut self, flow: u32, cost: u32, queue: u32) {
        let queues = &mut self.flows[flow as usize].as_mut().expect("a flow is given its queue at once").queues;
        self.away -= usize::from(queues.is_empty());
        queues.insert((cost, queue));
    }

    /// Takes a queue from a flow that has nothing waiting in it.
    pub fn close(&mut self, flow: u32, cost: u32, queue: u32) {
        let queues = &mut self.flows[flow as usize].as_mut().expect("a flow with a queue is known").queues;
        queues.remove(&(cost, queue));
        if queues.is_empty() {
            self.away += 1;
            if self.away > self.crowd {
                self.forget();
            }
        }
    }

    /// A request of a flow has begun to wait.
    pub fn enter(&mut self, flow: u32, band: u8) {
        let Flows { flows, lanes, .. } = self;
        let flow = flows[flow as usize].as_mut().expect("a flow with a queue is known");
        let mut now = 0;
        for &lane in &flow.lanes {
            let lane = &mut lanes[usize::from(lane)][usize::from(band)];
            lane.now = lane.time();
            lane.waiting += 1;
            now = now.max(lane.now);
        }
        let tag = match flow.bands.iter().position(|tag| tag.band == band) {
            Some(at) => &mut flow.bands[at],
            None => {
                flow.bands.push(Tag { band, start: 0, waiting: 0 });
                flow.bands.last_mut().expect("one was pushed")
            }
        };
        if tag.waiting == 0 {
            tag.start = tag.start.max(now);
        }
        tag.waiting += 1;
    }

    /// A request of a flow waits no more.
    pub fn leave(&mut self, flow: u32, band: u8) {
        let Flows { flows, lanes, .. } = self;
        let flow = flows[flow as usize].as_mut().expect("a flow with a queue is known");
        for &lane in &flow.lanes {
            lanes[usize::from(lane)][usize::from(band)].waiting -= 1;
        }
        tag(&mut flow.bands, band).waiting -= 1;
    }

    /// The next request of a flow is admitted to a lane: its tag moves on.
    pub fn serve(&mut self, flow: u32, band: u8, lane: u16, cost: u32) {
        let Flows { flows, lanes, .. } = self;
        let flow = flows[flow as usize].as_mut().expect("a flow with a queue is known");
        let tag = tag(&mut flow.bands, band);
        let lane = &mut lanes[usize::from(lane)][usize::from(band)];
        lane.now = lane.now.max(tag.start);
        tag.start = tag.start.saturating_add(flow.unit.saturating_mul(u64::from(cost)));
        lane.end = lane.end.max(tag.start);
    }

    /// The key of a flow's next request among all flows.
    pub fn key(&self, flow: u32, place: Place) -> Key {
        let band = place.band();
        let start = self.get(flow).bands.iter().find(|tag| tag.band == band).map_or(0, |tag| tag.start);
        Key::by(band, start, place)
    }

    /// Forgets the flows that are away and would start again where all do; and, when too many are left, all that are away, which then
    /// may get again what they had in advance: one request each.
    fn forget(&mut self) {
        let lanes = &self.lanes;
        let is_even = |flow: &Flow| {
            flow.bands.iter().all(|tag| {
                let time = |&lane: &u16| lanes[usize::from(lane)][usize::from(tag.band)].time();
                tag.start <= flow.lanes.iter().map(time).max().unwrap_or(0)
            })
        };
        let even: Vec<bool> = self.flows.iter().map(|flow| flow.as_ref().is_some_and(is_even)).collect();
        self.forget_those(|id, _| even[id]);
        if self.away > MOST_AWAY {
            self.forget_those(|_, _| true);
        }
        // The next look comes when half as many have left as it will look at.
        self.crowd = (2 * self.away).max(self.flows.len() / 2) + 64;
    }

    fn forget_those(&mut self, which: impl Fn(usize, &Flow) -> bool) {
        for (id, place) in self.flows.iter_mut().enumerate() {
            let Some(flow) = place.take_if(|flow| flow.queues.is_empty() && which(id, flow)) else { continue };
            if let Some(named) = self.ids.get_mut(&flow.name) {
                named.retain(|(set, _)| *set != flow.set);
                if named.is_empty() {
                    self.ids.remove(&flow.name);
                }
            }
            self.free.push(id as u32);
            self.away -= 1;
        }
    }
}

fn tag(bands: &mut [Tag], band: u8) -> &mut Tag {
    bands.iter_mut().find(|tag| tag.band == band).expect("a flow has a tag where it waits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow has one request, which is served at once.
    fn serve_one(flows: &mut Flows, name: &str) {
        let flow = flows.flow(name, 0, &[0]);
        flows.open(flow, 1, 9);
        flows.enter(flow, 5);
        flows.serve(flow, 5, 0, 1);
        flows.leave(flow, 5);
        flows.close(flow, 1, 9);
    }

    #[test]
    fn a_flow_that_is_even_is_forgotten() {
        let mut flows = Flows::new(&[]);
        for number in 0..10_000 {
            serve_one(&mut flows, &number.to_string());
        }
        assert!(flows.flows.len() < 200, "{}", flows.flows.len());
        assert_eq!(flows.ids.len(), flows.away);
    }

    /// While one flow always waits, those that come once each are all served one request in advance of it.
    #[test]
    fn flows_that_come_once_are_remembered_up_to_a_bound() {
        let mut flows = Flows::new(&[]);
        let waiting = flows.flow("waiting", 0, &[0]);
        flows.open(waiting, 1, 8);
        flows.enter(waiting, 5);
        let mut most = 0;
        for number in 0..300_000 {
            serve_one(&mut flows, &number.to_string());
            most = most.max(flows.away);
        }
        assert!((MOST_AWAY..3 * MOST_AWAY).contains(&most), "{most}");
        assert_eq!(flows.ids.len(), flows.away + 1);
        assert_eq!(flows.queues(waiting, 1).next(), Some(8));
    }

    #[test]
    fn a_weight_is_what_a_unit_of_cost_takes_less() {
        let mut flows = Flows::new(&[("heavy".into(), 4.0), ("light".into(), 0.001)]);
        let starts: Vec<Key> = ["heavy", "other", "light"]
            .into_iter()
            .map(|name| {
                let flow = flows.flow(name, 0, &[0]);
                flows.open(flow, 1, 0);
                flows.enter(flow, 5);
                flows.serve(flow, 5, 0, 8);
                flows.key(flow, Place::new(5, 0))
            })
            .collect();
        let unit = UNIT as u64;
        assert_eq!(starts, [2 * unit, 8 * unit, 8 * (UNIT * 1000.0) as u64].map(|start| Key::by(5, start, Place::new(5, 0))));
    }
}
