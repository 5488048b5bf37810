package api

import (
	"errors"
	"fmt"
	"strings"
)

// Exposure is where a node listens, and what is between it and whoever reaches its ports.
type Exposure struct {
	RaftAddress, HTTPAddress string // host:port
	RaftCerts                bool   // nodes show certificates to each other
	HTTPS                    bool
	Tokens                   bool // clients need tokens
	Insecure                 bool // the user has said that only trusted machines reach the ports
}

// Check returns an error, which names both ways out, if a port listens beyond the loopback interface and lets in
// whoever reaches it. If that is what the user wants, it is a warning.
func (e Exposure) Check() (warning string, err error) {
	var open []string
	if address := e.RaftAddress; !IsLoopback(address) && !e.RaftCerts {
		open = append(open, fmt.Sprintf("whoever reaches the raft port at %s is a member: "+
			"set RAFT_CERT_DIR (cert.sh makes one)", address))
	}
	if address := e.HTTPAddress; !IsLoopback(address) && !(e.HTTPS && e.Tokens) {
		var missing, makes []string
		if !e.HTTPS {
			missing, makes = append(missing, "HTTP_CERT_DIR"), append(makes, "cert.sh makes one")
		}
		if !e.Tokens {
			missing, makes = append(missing, "HTTP_TOKENS"), append(makes, "token.sh makes its lines")
		}
		open = append(open, fmt.Sprintf("whoever reaches the HTTP port at %s may read and change everything, or what "+
			"is on its way: set %s (%s)", address, strings.Join(missing, " and "), strings.Join(makes, ", ")))
	}
	text := strings.Join(open, "; ")
	switch {
	case text == "":
		return "", nil
	case e.Insecure:
		return "INSECURE=yes: " + text, nil
	}
	return "", errors.New(text + "; or set INSECURE=yes if only machines that you trust reach this one")
}
