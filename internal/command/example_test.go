package command_test

import (
	"fmt"

	"raftkv/internal/command"
)

// An entry of the raft log is a batch of commands.
func Example() {
	entry := command.Append(nil,
		command.Command{Kind: command.Set, Pairs: []command.Pair{{Key: "a", Value: []byte("1")}}},
		command.Command{Kind: command.Remove, Pairs: []command.Pair{{Key: "b"}, {Key: "c"}}},
	)
	fmt.Printf("%q\n", entry)
	batch, err := command.Decode(entry)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range batch {
		fmt.Println(c.Kind, len(c.Pairs), c.Pairs[0].Key)
	}
	// Output:
	// "\x01\x02\x01\x01\x01a\x011\x02\x02\x01b\x01c"
	// 1 1 a
	// 2 2 b
}

// A command that a client sends again is recognized by its idempotency key and its
// identity.
func ExampleParseRecord() {
	c := command.Command{
		Kind:    command.Remove,
		Pairs:   []command.Pair{{Key: "a"}, {Key: "b"}},
		Options: &command.Options{IdempotencyKey: "8e03978e"},
	}
	record := command.Result{Index: 12, Removed: 1}.Record(c.Identity())

	again, ok := command.ParseRecord(record, c.Identity())
	fmt.Println(again.Index, again.Removed, ok)

	c.Pairs = c.Pairs[:1] // another command with the same key
	_, ok = command.ParseRecord(record, c.Identity())
	fmt.Println(ok)
	// Output:
	// 12 1 true
	// false
}
