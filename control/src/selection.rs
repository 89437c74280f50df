//! Which endpoints of a service port a node uses: one pure function of what the API says about each of them, by
//! the rules of kube-proxy 1.36.
//!
//! - Ready endpoints are used. Only where there is none, those that terminate and still serve are.
//! - Traffic under the policy `Cluster` uses endpoints everywhere, narrowed by hints: to those hinted for this node if
//!   every ready endpoint has a node hint and one is for this node; else to those hinted for this node's zone
//!   if every ready endpoint has a zone hint and one is for this zone; else not at all.
//! - Traffic under the policy `Local` uses this node's own endpoints; hints do not count.
//! - Both sets fall back to terminating endpoints each by itself.
//!
//! `Service.spec.trafficDistribution` needs no rule here: the EndpointSlice controller turns it into hints.

/// A hint of an endpoint (`endpoints[].hints`), seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hint {
    /// It has none of this kind.
    #[default]
    Absent,
    /// It is hinted for others.
    Elsewhere,
    /// It is hinted for this node, or this node's zone.
    Here,
}

impl Hint {
    /// Sees a list of hinted nodes or zones from here.
    pub fn seen<T: AsRef<str>>(hints: &[T], here: &str) -> Hint {
        match hints {
            [] => Hint::Absent,
            _ if hints.iter().any(|hint| hint.as_ref() == here) => Hint::Here,
            _ => Hint::Elsewhere,
        }
    }
}

/// One endpoint of a service port, as far as it matters whether it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Candidate {
    /// `conditions.ready`; true where it is not given.
    pub ready: bool,
    /// `conditions.serving`; true where it is not given.
    pub serving: bool,
    /// `conditions.terminating`; false where it is not given.
    pub terminating: bool,
    /// `nodeName` is this node's.
    pub local: bool,
    /// `hints.forNodes`.
    pub node_hint: Hint,
    /// `hints.forZones`.
    pub zone_hint: Hint,
}

impl Candidate {
    fn last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// The traffic policies of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    /// `spec.internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is Local.
    pub external_local: bool,
    /// It has a node port, a load balancer address or an external address.
    pub external: bool,
}

impl Policies {
    /// Whether some traffic goes to endpoints of the whole cluster. Of a service with external addresses some always
    /// does: from this node and its pods, even where `externalTrafficPolicy` is Local.
    pub fn use_cluster(&self) -> bool {
        !self.internal_local || self.external
    }

    /// Whether some traffic goes to this node's own endpoints only.
    pub fn use_local(&self) -> bool {
        self.internal_local || (self.external && self.external_local)
    }
}

/// Which candidates are used, by their place in the list that was given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// For traffic under the policy Cluster; empty too if there is no such traffic.
    pub cluster: Vec<usize>,
    /// For traffic under the policy Local; empty too if there is no such traffic.
    pub local: Vec<usize>,
    /// Whether any endpoint in the cluster is usable at all. Where it is not, clients are refused; where it is, but
    /// not under their policy, their packets are dropped.
    pub anywhere: bool,
}

/// Chooses; see the module's head.
pub fn select(candidates: &[Candidate], policies: Policies) -> Selection {
    let places = |usable: &dyn Fn(&Candidate) -> bool| -> Vec<usize> {
        (0..candidates.len()).filter(|place| usable(&candidates[*place])).collect()
    };
    let or_last_resort = |ready: Vec<usize>, within: &dyn Fn(&Candidate) -> bool| match ready {
        ready if ready.is_empty() => places(&|c| within(c) && c.last_resort()),
        ready => ready,
    };
    let cluster = if policies.use_cluster() {
        let topology = Topology::of(candidates);
        or_last_resort(places(&|c| c.ready && topology.allows(c)), &|_| true)
    } else {
        Vec::new()
    };
    let local = if policies.use_local() {
        or_last_resort(places(&|c| c.ready && c.local), &|c| c.local)
    } else {
        Vec::new()
    };
    Selection { cluster, local, anywhere: candidates.iter().any(|c| c.ready || c.last_resort()) }
}

/// Which hints narrow the choice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Any,
    SameNode,
    SameZone,
}

impl Topology {
    fn of(candidates: &[Candidate]) -> Topology {
        let ready = || candidates.iter().filter(|c| c.ready);
        let narrows = |hint: fn(&Candidate) -> Hint| {
            ready().all(|c| hint(c) != Hint::Absent) && ready().any(|c| hint(c) == Hint::Here)
        };
        if narrows(|c| c.node_hint) {
            Topology::SameNode
        } else if narrows(|c| c.zone_hint) {
            Topology::SameZone
        } else {
            Topology::Any
        }
    }

    fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Topology::Any => true,
            Topology::SameNode => candidate.node_hint == Hint::Here,
            Topology::SameZone => candidate.zone_hint == Hint::Here,
        }
    }
}
