package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func hashOf(token string) string {
	hash := sha256.Sum256([]byte(token))
	return hex.EncodeToString(hash[:])
}

func mustParse(t testing.TB, text string) *table {
	t.Helper()
	parsed, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestHolds(t *testing.T) {
	for _, tt := range []struct {
		name, rights string
		right        Right
		want         bool
	}{
		{name: "read of a key", rights: "read:app/", right: Right{Read, "app/k"}, want: true},
		{name: "read of the prefix itself", rights: "read:app/", right: Right{Read, "app/"}, want: true},
		{name: "read of a wider prefix", rights: "read:app/", right: Right{Read, "app"}},
		{name: "read of everything", rights: "read:app/", right: Right{Read, ""}},
		{name: "read of another prefix", rights: "read:app/", right: Right{Read, "other/k"}},
		{name: "read of all", rights: "read:", right: Right{Read, ""}, want: true},
		{name: "write by read", rights: "read:", right: Right{Write, "app/k"}},
		{name: "read by write", rights: "write:app/", right: Right{Read, "app/k"}, want: true},
		{name: "write of a key", rights: "write:app/", right: Right{Write, "app/k"}, want: true},
		{name: "write of another prefix", rights: "write:app/", right: Right{Write, "apq"}},
		{name: "write of a wider prefix", rights: "write:app/", right: Right{Write, "ap"}},
		{name: "one of several", rights: "read: write:a/ write:b/", right: Right{Write, "b/1"}, want: true},
		{name: "two that do not add up", rights: "write:a write:b", right: Right{Write, ""}},
		{name: "admin", rights: "admin", right: Right{Kind: Admin}, want: true},
		{name: "admin by write of all", rights: "write:", right: Right{Kind: Admin}},
		{name: "read by admin", rights: "admin", right: Right{Read, ""}},
		{name: "write by admin", rights: "admin", right: Right{Write, "k"}},
		{name: "escaped", rights: "read:a%20b%25/", right: Right{Read, "a b%/k"}, want: true},
		{name: "bytes", rights: "read:%FF%00", right: Right{Read, "\xff\x00\x01"}, want: true},
		{name: "plus is no space", rights: "read:a+b", right: Right{Read, "a b"}},
	} {
		h := mustParse(t, "alice "+hashOf("t")+" "+tt.rights).find("t")
		if got := h.Holds(tt.right); got != tt.want {
			t.Errorf("%s: %s for %s: got %t, want %t", tt.name, tt.rights, tt.right, got, tt.want)
		}
	}
	if (*Holder)(nil).Holds(Right{Read, "k"}) {
		t.Error("nobody holds a right, want none")
	}
}

func TestFind(t *testing.T) {
	all := mustParse(t, "# comment\n\nalice "+hashOf("a1")+" admin\n  bob\t"+strings.ToUpper(hashOf("b"))+
		" read:\r\nalice "+hashOf("a2")+" write:\nanonymous read:public/\n")
	for token, want := range map[string]string{"a1": "alice", "a2": "alice", "b": "bob", "": "", "c": "", "a": "",
		"a11": "", hashOf("a1"): "", strings.Repeat("x", 1<<20): ""} {
		got := ""
		if h := all.find(token); h != nil {
			got = h.Name
		}
		if got != want {
			t.Errorf("%.40q: got %q, want %q", token, got, want)
		}
	}
	if all.find("a1").Holds(Right{Write, "k"}) || !all.find("a2").Holds(Right{Write, "k"}) {
		t.Error("a token has the rights of the other line of its name, want those of its own")
	}
	if !all.anonymous.Holds(Right{Read, "public/x"}) || all.anonymous.Holds(Right{Read, "p"}) {
		t.Error("anonymous: want read:public/")
	}
	if mustParse(t, "alice "+hashOf("t")+" admin").anonymous != nil {
		t.Error("without a line anonymous there is one")
	}
	if probes := mustParse(t, "anonymous").anonymous; probes == nil || probes.Holds(Right{Read, "k"}) {
		t.Errorf("anonymous alone: got %v, want nobody's rights", probes)
	}
	longest := strings.Repeat("t", maxToken)
	if mustParse(t, "alice "+hashOf(longest)+" admin").find(longest) == nil {
		t.Errorf("a token of %d bytes is nobody's", maxToken)
	}
}

func TestParseRefuses(t *testing.T) {
	hash := hashOf("t")
	secret := "5a5f1b9e3c7d2f4a6b8c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1x" // not a hash: it may be a token
	for _, tt := range []struct{ name, text, names string }{
		{name: "empty", text: "", names: "no line"},
		{name: "comments alone", text: "# a\n", names: "no line"},
		{name: "no hash", text: "alice", names: "line 1: want NAME SHA256"},
		{name: "a right in the place of the hash", text: "alice admin", names: "line 1: behind the name"},
		{name: "a token in the place of the hash", text: "\nalice " + secret + " admin", names: "line 2: behind the name"},
		{name: "short hash", text: "alice " + hash[2:] + " admin", names: "64 hexadecimal digits"},
		{name: "no rights", text: "alice " + hash, names: "0 rights"},
		{name: "anonymous with a hash", text: "anonymous " + hash + " read:", names: "a right"},
		{name: "anonymous twice", text: "anonymous read:a\nanonymous read:b", names: "line 2: a second line of anonymous"},
		{name: "bad name", text: "-a " + hash + " admin", names: "the name"},
		{name: "long name", text: strings.Repeat("a", 65) + " " + hash + " admin", names: "the name"},
		{name: "the same token", text: "alice " + hash + " admin\nbob " + strings.ToUpper(hash) + " read:",
			names: "line 2: the token of line 1 again"},
		{name: "unknown right", text: "alice " + hash + " root", names: "a right"},
		{name: "read without a prefix", text: "alice " + hash + " read", names: "a right"},
		{name: "write without a prefix", text: "alice " + hash + " write", names: "a right"},
		{name: "admin with a prefix", text: "alice " + hash + " admin:", names: "a right"},
		{name: "bad escape", text: "alice " + hash + " read:%zz", names: "%25"},
		{name: "long prefix", text: "alice " + hash + " read:" + strings.Repeat("p", 1025), names: "1024 bytes"},
		{name: "many rights", text: "alice " + hash + strings.Repeat(" read:a", 65), names: "65 rights"},
		{name: "many tokens", text: manyTokens(1025), names: "line 1025: more than 1024 tokens"},
		{name: "large", text: strings.Repeat("#", maxFile+1), names: "larger than 1048576 bytes"},
	} {
		_, err := parse([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.names) || strings.ContainsAny(err.Error(), "\n") ||
			strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want one line that names %q and no token", tt.name, err, tt.names)
		}
	}
	if all := mustParse(t, manyTokens(1024)); all.find("t1023") == nil {
		t.Error("the last of 1024 tokens is nobody's")
	}
}

func manyTokens(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a %s admin\n", hashOf(fmt.Sprint("t", i)))
	}
	return b.String()
}

// FuzzParse: whatever a file has, it is an error or a table that is the same when it is written anew.
func FuzzParse(f *testing.F) {
	f.Add([]byte("alice " + hashOf("t") + " read:a%20b write:\xff/ admin\nanonymous read:public/"))
	f.Add([]byte("# a\n\n a " + hashOf("t") + " read:\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		first, err := parse(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line", err)
			}
			return
		}
		var again bytes.Buffer
		all := first.holders
		if first.anonymous != nil {
			all = append(slices.Clone(all), first.anonymous)
		}
		for _, h := range all {
			again.WriteString(h.Name)
			if h != first.anonymous {
				again.WriteString(" " + hex.EncodeToString(h.hash[:]))
			}
			for _, r := range h.rights {
				if !h.Holds(r) {
					t.Errorf("%s does not hold its own right %s", h.Name, r)
				}
				again.WriteString(" " + r.String())
			}
			again.WriteByte('\n')
		}
		if again.Len() > maxFile { // escapes are longer
			return
		}
		second := mustParse(t, again.String())
		for i, h := range first.holders {
			other := second.holders[i]
			if other.hash != h.hash || other.Name != h.Name || !slices.Equal(other.rights, h.rights) {
				t.Errorf("got %+v, want %+v", other, h)
			}
		}
		a, b := first.anonymous, second.anonymous
		if (a == nil) != (b == nil) || a != nil && !slices.Equal(a.rights, b.rights) {
			t.Errorf("anonymous: got %+v, want %+v", b, a)
		}
	})
}

// lines are those that Tokens has logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprintf(format, args...))
}

func (l *lines) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	next := path + ".next"
	err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Chmod(next, mode), os.Rename(next, path))
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30s: %s", what)
		}
	}
}

// TestReadAgain: a file that changes is in force within a second or so; one that can't be used changes nothing, and is
// logged once.
func TestReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	first, second := "alice "+hashOf("a")+" read:\n", "bob "+hashOf("b")+" read:\n"
	write(t, path, first, 0o600)
	var logged lines
	tokens, err := Open(path, logged.add)
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	alice := tokens.Find("a")
	if alice == nil || tokens.Find("b") != nil || tokens.Anonymous() != nil {
		t.Fatalf("got %v, want alice alone", alice)
	}
	kept, releaseKept := tokens.Bind(t.Context(), alice)
	defer releaseKept()

	write(t, path, "nonsense", 0o600)
	eventually(t, "a line about nonsense", func() bool { return logged.count("former tokens are in force: line 1") == 1 })
	write(t, path, second, 0o644)
	eventually(t, "a line about the mode", func() bool { return logged.count("chmod 600 '"+path+"'") == 1 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a line about no file", func() bool { return logged.count("no such file") == 1 })
	if tokens.Find("a") == nil || kept.Err() != nil {
		t.Error("alice has lost the token by a file that can't be used")
	}

	write(t, path, first+second, 0o600)
	eventually(t, "bob", func() bool { return tokens.Find("b") != nil })
	if kept.Err() != nil {
		t.Error("what alice does has ended by a line of bob's")
	}
	write(t, path, second+"anonymous read:public/\n", 0o600)
	eventually(t, "no alice", func() bool { return tokens.Find("a") == nil })
	<-kept.Done()
	if got := context.Cause(kept); got != ErrRightsChanged {
		t.Errorf("got %v, want ErrRightsChanged", got)
	}
	late, releaseLate := tokens.Bind(t.Context(), alice)
	defer releaseLate()
	<-late.Done()

	bob, releaseBob := tokens.Bind(t.Context(), tokens.Find("b"))
	defer releaseBob()
	nobody, releaseNobody := tokens.Bind(t.Context(), tokens.Anonymous())
	defer releaseNobody()
	write(t, path, strings.Replace(second, "read:", "read:b/", 1), 0o600)
	<-bob.Done()
	<-nobody.Done()
	eventually(t, "two lines about a file that was read again", func() bool {
		return logged.count("was read again: 1 tokens") == 2
	})
	releaseBob()
	tokens.Close()
	tokens.mu.Lock()
	defer tokens.mu.Unlock()
	if got := len(tokens.bound); got != 3 {
		t.Errorf("got %d that are bound, want 3: the released one is not", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	good := "alice " + hashOf("a") + " read:\n"
	for _, tt := range []struct {
		name, names string
		make        func(path string) error
	}{
		{name: "none", names: "no such file", make: func(string) error { return nil }},
		{name: "directory", names: "not a file", make: func(path string) error { return os.Mkdir(path, 0o700) }},
		{name: "of the group", names: "chmod 600", make: func(path string) error {
			return errors.Join(os.WriteFile(path, []byte(good), 0o600), os.Chmod(path, 0o660))
		}},
		{name: "of all", names: "chmod 600", make: func(path string) error {
			return errors.Join(os.WriteFile(path, []byte(good), 0o600), os.Chmod(path, 0o602))
		}},
		{name: "wrong", names: "line 1", make: func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }},
		{name: "large", names: "larger than", make: func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("#"), maxFile+1), 0o600)
		}},
	} {
		path := filepath.Join(dir, tt.name)
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		tokens, err := Open(path, t.Logf)
		if err == nil || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("%s: got %v, want an error that names %q", tt.name, err, tt.names)
		}
		tokens.Close()
	}
	path := filepath.Join(dir, "read-only")
	if err := os.WriteFile(path, []byte(good), 0o400); err != nil {
		t.Fatal(err)
	}
	tokens, err := Open(path, t.Logf)
	if err != nil {
		t.Errorf("mode 400: got %v, want that it is read", err)
	}
	tokens.Close()
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if tokens, err := Open(path, t.Logf); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("another user's: got %v, want an error", err)
			tokens.Close()
		}
	}
}
