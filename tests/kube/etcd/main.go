// etcd as its own release builds it: the store of the kube-apiserver next to it. It is here because
// Debian's etcd-server is older than what Kubernetes 1.36 asks for.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
