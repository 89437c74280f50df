//! The real Kubernetes, as far as it decides what becomes of a packet to a Service: etcd, kube-apiserver and
//! kube-proxy, which `tests/kube` builds from their own source. No kubelet, no controllers: whoever
//! uses it writes Nodes, Services and EndpointSlices himself.
//!
//! | module | what lives there |
//! |---|---|
//! | [`programs`] | the programs: where they are, and whether they can be had here |
//! | [`apiserver`] | etcd and kube-apiserver on a namespace's loopback |
//! | [`proxy`] | kube-proxy in a node's namespace |

pub mod apiserver;
pub mod programs;
pub mod proxy;

pub use apiserver::ApiServer;
pub use programs::Programs;
pub use proxy::KubeProxy;
