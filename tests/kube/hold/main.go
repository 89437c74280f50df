// hold makes an API server hold exactly the objects of some files, and prints them as the server then holds
// them, defaults filled in, as one List.
//
//	hold --server URL --ca FILE --token TOKEN objects.json...
//
// A file is a List of Namespaces, Nodes, Services and EndpointSlices. Of Services and EndpointSlices, whatever else
// lies in the namespaces of those given is deleted first. Within a file, kinds are written one after the other, and
// the objects of a kind several at a time; a file is written when all of the one before it is, so that a watcher
// that has seen the second file's has seen all of the first's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// Requests under way at once.
const writers = 16

// Kinds in the order in which they are written.
var kinds = []struct {
	name     string
	resource schema.GroupVersionResource
	// Whether objects that are not in the file are deleted.
	whole bool
}{
	{"Namespace", schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, false},
	{"Node", schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, false},
	{"Service", schema.GroupVersionResource{Version: "v1", Resource: "services"}, true},
	{"EndpointSlice", schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}, true},
}

func main() {
	server := flag.String("server", "", "address of the API server, https://HOST:PORT")
	ca := flag.String("ca", "", "file with the certificate that the server's is checked against")
	token := flag.String("token", "", "bearer token")
	flag.Parse()
	if flag.NArg() == 0 || *server == "" {
		flag.Usage()
		os.Exit(2)
	}
	config := &rest.Config{
		Host:            *server,
		BearerToken:     *token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: *ca},
		QPS:             -1,
	}
	if err := run(context.Background(), config, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "hold:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config *rest.Config, files []string) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	var lists []*unstructured.UnstructuredList
	for _, file := range files {
		bytes, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		list := &unstructured.UnstructuredList{}
		if err := json.Unmarshal(bytes, list); err != nil {
			return fmt.Errorf("%s is not a List: %w", file, err)
		}
		lists = append(lists, list)
	}
	there := map[string]map[name]*unstructured.Unstructured{}
	for _, kind := range kinds {
		if there[kind.name], err = clearOut(ctx, client.Resource(kind.resource), lists, kind.name, kind.whole); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	held := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
	for _, list := range lists {
		for _, kind := range kinds {
			objects, err := write(ctx, client.Resource(kind.resource), ofKind(list, kind.name), there[kind.name])
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			held.Items = append(held.Items, objects...)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(held)
}

func ofKind(list *unstructured.UnstructuredList, kind string) []unstructured.Unstructured {
	var objects []unstructured.Unstructured
	for _, object := range list.Items {
		if object.GetKind() == kind {
			objects = append(objects, object)
		}
	}
	return objects
}

type name struct{ namespace, name string }

func nameOf(object *unstructured.Unstructured) name {
	return name{object.GetNamespace(), object.GetName()}
}

// clearOut deletes what is in no file, if files are whole, and returns what is there.
func clearOut(
	ctx context.Context, client dynamic.NamespaceableResourceInterface, lists []*unstructured.UnstructuredList,
	kind string, whole bool,
) (map[name]*unstructured.Unstructured, error) {
	existing, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	wanted, namespaces := map[name]bool{}, map[string]bool{}
	for _, list := range lists {
		for _, object := range ofKind(list, kind) {
			wanted[nameOf(&object)] = true
			namespaces[object.GetNamespace()] = true
		}
	}
	there := map[name]*unstructured.Unstructured{}
	var leftover []name
	for i := range existing.Items {
		n := nameOf(&existing.Items[i])
		there[n] = &existing.Items[i]
		if whole && namespaces[n.namespace] && !wanted[n] {
			leftover = append(leftover, n)
		}
	}
	return there, inParallel(len(leftover), func(i int) error {
		return client.Namespace(leftover[i].namespace).Delete(ctx, leftover[i].name, metav1.DeleteOptions{})
	})
}

// write makes the server hold objects of one kind and returns them as it then holds them.
func write(
	ctx context.Context, client dynamic.NamespaceableResourceInterface, wanted []unstructured.Unstructured,
	there map[name]*unstructured.Unstructured,
) ([]unstructured.Unstructured, error) {
	held := make([]unstructured.Unstructured, len(wanted))
	return held, inParallel(len(wanted), func(i int) error {
		object, err := writeOne(ctx, client.Namespace(wanted[i].GetNamespace()), &wanted[i], there[nameOf(&wanted[i])])
		if err != nil {
			return fmt.Errorf("%s/%s: %w", wanted[i].GetNamespace(), wanted[i].GetName(), err)
		}
		held[i] = *object
		return nil
	})
}

// writeOne creates an object, or replaces the one that is there.
func writeOne(
	ctx context.Context, client dynamic.ResourceInterface, wanted, there *unstructured.Unstructured,
) (*unstructured.Unstructured, error) {
	var held *unstructured.Unstructured
	var err error
	if there == nil {
		held, err = client.Create(ctx, wanted, metav1.CreateOptions{})
	} else {
		wanted.SetResourceVersion(there.GetResourceVersion())
		held, err = client.Update(ctx, wanted, metav1.UpdateOptions{})
	}
	if err != nil {
		return nil, err
	}
	// The status of a Service is a resource of its own, which the requests above leave alone.
	held.SetManagedFields(nil)
	status, has := wanted.Object["status"]
	if !has || held.GetKind() != "Service" || reflect.DeepEqual(status, held.Object["status"]) {
		return held, nil
	}
	held.Object["status"] = status
	if held, err = client.UpdateStatus(ctx, held, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	held.SetManagedFields(nil)
	return held, nil
}

// inParallel does so many pieces of work, several at a time, and returns their errors.
func inParallel(count int, work func(i int) error) error {
	next := make(chan int)
	errs := make([]error, count)
	var group sync.WaitGroup
	for range min(writers, count) {
		group.Go(func() {
			for i := range next {
				errs[i] = work(i)
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	group.Wait()
	return errors.Join(errs...)
}
