package kv_test

import (
	"context"
	"fmt"

	"raftkv/internal/kv"
)

// Each Update is one entry of the raft log: its index is the version of the keys that it
// sets, and the position from which a watch goes on.
func ExampleStore() {
	s := kv.New()
	watcher, _ := s.WatchNow("fruit/")
	defer watcher.Close()
	s.Update(7, 2, nil, func(tx *kv.Tx) {
		tx.Set("fruit/apple", []byte("red"))
		tx.Set("tree", []byte("tall"))
	})
	snapshot := s.Clone() // constant time: the trees are copy-on-write
	s.Update(8, 2, nil, func(tx *kv.Tx) { tx.Remove("fruit/apple") })

	item, ok := s.Get("fruit/apple")
	fmt.Println("store:", item.Value, ok)
	item, ok = snapshot.Get("fruit/apple")
	fmt.Println("clone:", item.Value, ok, "index", item.Index)

	events, through, err := watcher.Next(context.Background())
	for _, e := range events {
		for _, c := range e.Changes {
			fmt.Printf("event %d: %s=%q removed=%t\n", e.Index, c.Key, c.Value, c.Removed)
		}
	}
	fmt.Println("through", through, err)
	// Output:
	// store:  false
	// clone: red true index 7
	// event 7: fruit/apple="red" removed=false
	// event 8: fruit/apple="" removed=true
	// through 8 <nil>
}
