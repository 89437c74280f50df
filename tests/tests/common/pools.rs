//! Manifests that say how packets between nodes are encapsulated.

/// An IPPool of Calico's.
pub(crate) fn ip_pool(modes: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: pods\nspec:\n  cidr: 10.244.0.0/16\n  \
         blockSize: 24\n{modes}"
    )
}

/// Flannel's configuration.
pub(crate) fn flannel(backend: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kube-flannel-cfg\n  namespace: kube-flannel\ndata:\n  \
         net-conf.json: |\n    {{\"Network\": \"10.244.0.0/16\", \"Backend\": {{{backend}}}}}\n"
    )
}
