package command

import (
	"slices"
	"testing"
)

// TestNames: the names of an entry's commands are known for the bytes that were put, until they are forgotten.
func TestNames(t *testing.T) {
	var names Names
	commands := []Command{{Kind: Noop, By: "alice"}, {Kind: Noop}}
	entry := Append(nil, commands...)
	forget := names.Put(entry, commands)
	get := func(n *Names, entry []byte) (by []string) {
		decoded, err := Decode(entry)
		if err != nil {
			t.Fatal(err)
		}
		n.Get(entry, decoded)
		for _, c := range decoded {
			by = append(by, c.By)
		}
		return by
	}
	if got := get(&names, entry); !slices.Equal(got, []string{"alice", ""}) {
		t.Errorf("got %q, want alice and nobody", got)
	}
	if got := get(&names, slices.Clone(entry)); !slices.Equal(got, []string{"", ""}) {
		t.Errorf("an equal entry of another node: got %q, want nobody", got)
	}
	forget()
	if got := get(&names, entry); !slices.Equal(got, []string{"", ""}) {
		t.Errorf("after it was forgotten: got %q, want nobody", got)
	}
	names.Put(entry, []Command{{Kind: Noop}, {Kind: Noop}})()
	(*Names)(nil).Put(entry, commands)()
	get(nil, entry)
	names.Get(nil, nil)
}
