package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"raftkv/internal/auth"
	"raftkv/internal/command"
)

// Access decides by their tokens what requests may do. A nil Access lets everything in.
//
// Check decides what can be decided by the path alone; which keys a request is about is known only
// when it is parsed, so its endpoint calls Read or Command then. Its methods may be called by
// several goroutines at once.
type Access struct {
	tokens *auth.Tokens
	logf   func(format string, args ...any)

	mu     sync.Mutex           // guards what follows
	logged map[string]time.Time // remote host: when a refusal was last logged
}

// NewAccess returns the Access of tokens. logf prints refusals, at most one a second for each
// remote host.
func NewAccess(tokens *auth.Tokens, logf func(format string, args ...any)) *Access {
	return &Access{tokens: tokens, logf: logf, logged: make(map[string]time.Time)}
}

// need is what a path asks for before its endpoint is called.
type need int

const (
	needAdmin  need = iota // the right admin
	needToken              // any token
	needProbe              // any token, or a line of Anonymous: load balancers ask it, most of which send no header
	needRights             // rights that the endpoint asks for; Anonymous may have them
	needNone
)

// needs are those of all paths but the ones that need the right admin, as one does that is not known.
var needs = map[string]need{
	"/set": needRights, "/remove": needRights, "/txn": needRights,
	"/get": needRights, "/list": needRights, "/watch": needRights,
	"/status": needToken, "/metrics": needToken, "/readyz": needProbe,
	"/healthz": needNone, "/": needNone, "/relay": needNone,

	"/version": needToken, GatewayPrefix + "maintenance/status": needToken,
	GatewayPrefix + "cluster/member/list": needToken,
	GatewayPrefix + "auth/authenticate":   needNone,
}

// needOf returns what the path of r asks for. Most of the gateway's are about keys.
func needOf(r *http.Request) need {
	n, known := needs[r.URL.Path]
	if !known && IsGateway(r) {
		return needRights
	}
	return n
}

// holderKey is that of a request's *auth.Holder in its context.
type holderKey struct{}

// Check answers r by next if its token may do what its path asks for, and with 401 or 403 otherwise.
// While next answers, a change of the token's rights ends the context of r.
func (a *Access) Check(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if a == nil {
		next.ServeHTTP(w, r)
		return
	}
	h, err := a.holder(r)
	if err == nil && needOf(r) == needAdmin {
		err = a.require(h, auth.Right{Kind: auth.Admin})
	}
	if err != nil {
		e, _ := errors.AsType[Error](err)
		a.refuse(w, r, e)
		WriteError(w, r, e.Status, e.Message)
		return
	}
	ctx := context.WithValue(r.Context(), holderKey{}, h)
	if h != nil {
		var release func()
		ctx, release = a.tokens.Bind(ctx, h)
		defer release()
	}
	next.ServeHTTP(w, r.WithContext(ctx))
}

// holder returns the holder of r's token; nil: r needs none and has none.
func (a *Access) holder(r *http.Request) (*auth.Holder, error) {
	if needOf(r) == needNone {
		return nil, nil
	}
	given := r.Header.Values("Authorization")
	if len(given) == 0 {
		if h := a.tokens.Anonymous(); h != nil {
			if needs := needOf(r); needs == needRights || needs == needProbe {
				return h, nil
			}
		}
		return nil, Errorf(http.StatusUnauthorized, "no token: send Authorization: Bearer TOKEN")
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	if len(given) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return nil, Errorf(http.StatusUnauthorized, "Authorization: want Bearer TOKEN, once; nothing else is known here")
	}
	h := a.tokens.Find(strings.TrimSpace(token))
	if h == nil {
		return nil, Errorf(http.StatusUnauthorized, "Authorization: nobody has this token; "+
			"it may have been replaced by another")
	}
	return h, nil
}

// require returns an Error unless h holds the right.
func (a *Access) require(h *auth.Holder, right auth.Right) error {
	switch {
	case h.Holds(right):
		return nil
	case h == nil || h.Name == auth.Anonymous:
		return Errorf(http.StatusUnauthorized, "without a token, there is no right %s: send Authorization: Bearer TOKEN",
			right)
	}
	return Errorf(http.StatusForbidden, "%s has no right %s: use a token that has it; HTTP_TOKENS gives the rights",
		h.Name, right)
}

// Read returns an Error unless the request of ctx may read all keys with each of the prefixes; a key
// alone is such a prefix.
func (a *Access) Read(ctx context.Context, prefixes ...string) error {
	if a == nil {
		return nil
	}
	for _, prefix := range prefixes {
		if err := a.require(holderOf(ctx), auth.Right{Kind: auth.Read, Prefix: prefix}); err != nil {
			return err
		}
	}
	return nil
}

// holderOf is nil, which has no rights, if Check was not called.
func holderOf(ctx context.Context) *auth.Holder {
	h, _ := ctx.Value(holderKey{}).(*auth.Holder)
	return h
}

// Command returns c for the request of ctx, with its name in By and its idempotency key among those
// of that name: what a client learns from a key is only what it has done itself. It returns an
// Error unless the request may do all that c does, whatever its conditions select.
func (a *Access) Command(ctx context.Context, c command.Command) (command.Command, error) {
	if a == nil {
		return c, nil
	}
	h := holderOf(ctx)
	var err error
	require := func(kind auth.Kind, prefix string) {
		err = cmp.Or(err, a.require(h, auth.Right{Kind: kind, Prefix: prefix}))
	}
	lease := func(l command.Lease) { // it shows whether its key is there
		if l.Key != "" {
			require(auth.Read, l.Key)
		}
	}
	switch c.Kind {
	case command.Set, command.Remove, command.RemovePrefix:
		lease(c.Lease())
		for _, p := range c.Pairs {
			require(auth.Write, p.Key)
		}
	case command.Txn:
		for _, condition := range c.Txn.If {
			require(auth.Read, condition.Key)
		}
		for _, operations := range [][]command.Operation{c.Txn.Then, c.Txn.Else} {
			for _, o := range operations {
				switch o.Op {
				case command.OpGet:
					require(auth.Read, o.Key)
				case command.OpView:
					require(auth.Read, command.RangePrefix(o.Key, o.End))
				case command.OpRemoveRange:
					require(auth.Write, command.RangePrefix(o.Key, o.End))
				default:
					require(auth.Write, o.Key)
					lease(o.Lease)
				}
			}
		}
	default:
		require(auth.Admin, "")
	}
	if err != nil {
		return c, err
	}
	if c.By = h.Name; c.Options != nil && c.IdempotencyKey != "" {
		own := *c.Options
		own.IdempotencyKey = keyOf(h.Name, own.IdempotencyKey)
		c.Options = &own
	}
	return c, nil
}

// keyOf returns the idempotency key of a client with a name, as the state machine has it. It is a hash
// so that it has the same bound as any other, and no other name leads to it.
func keyOf(name, key string) string {
	hash := sha256.Sum256([]byte(name + "\x00" + key))
	return "=" + base64.RawURLEncoding.EncodeToString(hash[:])
}

// Refuse sets the header of, and logs, an err that refuses r for its token's rights; it ignores any other.
func (a *Access) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	e, _ := errors.AsType[Error](err)
	if a != nil && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		a.refuse(w, r, e)
	}
}

// refuse logs the refusal of r, unless one of the same remote host was logged within the last second.
func (a *Access) refuse(w http.ResponseWriter, r *http.Request, e Error) {
	if e.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = "another node" // that has sent it on
	}
	now := time.Now()
	a.mu.Lock()
	recent := now.Sub(a.logged[host]) < time.Second
	if !recent {
		if len(a.logged) > 1024 { // many hosts: forget, rather than grow
			clear(a.logged)
		}
		a.logged[host] = now
	}
	a.mu.Unlock()
	if !recent {
		a.logf("refused %s from %s: %s", r.URL.Path, host, e.Message)
	}
}
