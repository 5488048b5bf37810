// Package auth has the tokens of clients, and the rights of each: a file with a line for each token, which is read
// again when it changes. It knows neither HTTP nor raft.
//
// A token is 256 random bits, so that nobody guesses one, and the file has its SHA-256: whoever reads the file has no
// token by that. A slow hash, as passwords need, would only cost time.
package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Bounds of a file of tokens.
const (
	maxFile   = 1 << 20 // bytes
	maxTokens = 1024    // each is compared with the token of every request
	maxRights = 64      // of a token
	maxPrefix = 1024    // bytes, as of a key
	maxToken  = 512     // bytes
)

// Kind is what a right is for.
type Kind int

// The kinds of rights.
const (
	Read  Kind = iota + 1 // of keys
	Write                 // of keys, and Read
	Admin                 // backups, restores and members
)

// Right is for all keys with a prefix, or, of Admin, for none.
type Right struct {
	Kind   Kind
	Prefix string
}

// String returns the right as a file has it.
func (r Right) String() string {
	// A space would end it, and what does not print would show nobody what it is.
	escaped := new(strings.Builder)
	for i := range len(r.Prefix) {
		if b := r.Prefix[i]; b <= ' ' || b == '%' || b > '~' {
			fmt.Fprintf(escaped, "%%%02X", b)
		} else {
			escaped.WriteByte(b)
		}
	}
	switch r.Kind {
	case Read:
		return "read:" + escaped.String()
	case Write:
		return "write:" + escaped.String()
	}
	return "admin"
}

// Holder is the holder of a token. It is not changed any more.
type Holder struct {
	Name string

	hash   [sha256.Size]byte // of the token; of Anonymous, zero
	rights []Right
}

// Anonymous is the name of those that send no token.
const Anonymous = "anonymous"

// Holds reports whether the rights of h are enough for one: a Read or a Write of a prefix for all keys that begin with
// it, so that a key stands for itself. A nil Holder has no rights.
func (h *Holder) Holds(r Right) bool {
	return h != nil && slices.ContainsFunc(h.rights, func(has Right) bool {
		switch {
		case r.Kind == Admin || has.Kind == Admin:
			return r.Kind == has.Kind
		case r.Kind == Write && has.Kind == Read:
			return false
		}
		return strings.HasPrefix(r.Prefix, has.Prefix)
	})
}

// table is the content of a file.
type table struct {
	holders   []*Holder
	anonymous *Holder // nil: there is no such line
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// parse returns the table that text describes: a line NAME SHA256 RIGHT… for each token, where a right is read:PREFIX,
// write:PREFIX or admin, and a line anonymous, which may have no RIGHT, for what needs none. Prefixes are
// percent-encoded where they have spaces or percent signs; an empty one is for all keys. Empty lines, and those that
// begin with #, are skipped. A name may have several lines, as when a token is replaced by another.
//
// An error has the number of the line and none of its text: it might be a token in the place of its hash.
func parse(text []byte) (*table, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	t := new(table)
	lines := make(map[[sha256.Size]byte]int) // of hashes
	number := 0
	for line := range bytes.Lines(text) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		h, err := parseLine(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if h.Name == Anonymous {
			if t.anonymous != nil {
				return nil, fmt.Errorf("line %d: a second line of %s", number, Anonymous)
			}
			t.anonymous = h
			continue
		}
		if first, ok := lines[h.hash]; ok {
			return nil, fmt.Errorf("line %d: the token of line %d again", number, first)
		}
		lines[h.hash] = number
		if t.holders = append(t.holders, h); len(t.holders) > maxTokens {
			return nil, fmt.Errorf("line %d: more than %d tokens", number, maxTokens)
		}
	}
	if len(t.holders) == 0 && t.anonymous == nil {
		return nil, errors.New("it has no line NAME SHA256 RIGHT…, so that nobody could do anything")
	}
	return t, nil
}

func parseLine(fields []string) (*Holder, error) {
	h := &Holder{Name: fields[0]}
	if !namePattern.MatchString(h.Name) {
		return nil, errors.New("the name: want 1 to 64 letters, digits, dots, dashes or underscores, " +
			"the first a letter or digit")
	}
	fields = fields[1:]
	if h.Name != Anonymous {
		if len(fields) == 0 {
			return nil, errors.New("want NAME SHA256 RIGHT…")
		}
		hash, err := hex.DecodeString(fields[0])
		if err != nil || len(hash) != len(h.hash) {
			return nil, errors.New("behind the name: want the SHA-256 of a token in 64 hexadecimal digits, " +
				"as token.sh prints it")
		}
		h.hash = [sha256.Size]byte(hash)
		fields = fields[1:]
	}
	if len(fields) == 0 && h.Name != Anonymous || len(fields) > maxRights {
		return nil, fmt.Errorf("%d rights; want 1 to %d of read:PREFIX, write:PREFIX and admin", len(fields), maxRights)
	}
	for _, field := range fields {
		right, err := ParseRight(field)
		if err != nil {
			return nil, err
		}
		h.rights = append(h.rights, right)
	}
	return h, nil
}

// ParseRight parses a right as a file has it.
func ParseRight(text string) (r Right, err error) {
	kind, prefix, _ := strings.Cut(text, ":")
	switch {
	case kind == "read" && text != "read":
		r.Kind = Read
	case kind == "write" && text != "write":
		r.Kind = Write
	case text == "admin":
		return Right{Kind: Admin}, nil
	default:
		return r, errors.New("a right: want read:PREFIX, write:PREFIX or admin")
	}
	if r.Prefix, err = url.PathUnescape(prefix); err != nil || len(r.Prefix) > maxPrefix {
		return r, fmt.Errorf("a right: want a prefix of at most %d bytes, with %% as %%25 and a space as %%20", maxPrefix)
	}
	return r, nil
}

// find returns the holder of a token; nil: it is nobody's. How long it takes does not depend on how much of the
// token is right.
func (t *table) find(token string) (found *Holder) {
	if token == "" || len(token) > maxToken {
		return nil
	}
	hash := sha256.Sum256([]byte(token))
	for _, h := range t.holders {
		if subtle.ConstantTimeCompare(h.hash[:], hash[:]) == 1 {
			found = h
		}
	}
	return found
}

// again returns the Holder of this table for the token of h, of another table; nil: there is none.
func (t *table) again(h *Holder) *Holder {
	if h.Name == Anonymous {
		return t.anonymous
	}
	i := slices.IndexFunc(t.holders, func(other *Holder) bool { return other.hash == h.hash })
	if i < 0 {
		return nil
	}
	return t.holders[i]
}
