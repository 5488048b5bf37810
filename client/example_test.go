package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"

	"raftkv/client"
)

// A lock that one of many programs gets, and what the others are told.
func Example() {
	c, err := client.New(client.Config{Endpoints: []string{"http://10.0.0.1:8000", "http://10.0.0.2:8000"}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.Set(context.Background(), "lock", []byte("me"), client.IfAbsent())
	switch {
	case errors.Is(err, client.ErrPreconditionFailed):
		fmt.Println("another has it")
	case errors.Is(err, client.ErrUnknown):
		fmt.Println("read it, to see whose it is:", err)
	case err != nil:
		fmt.Println("nothing was done:", err)
	}
}

// One unit goes from one account to the other, unless either was changed meanwhile.
func ExampleClient_Txn() {
	move := func(ctx context.Context, c *client.Client, a, b client.Item) (moved bool, err error) {
		ofA, _ := strconv.Atoi(string(a.Value))
		ofB, _ := strconv.Atoi(string(b.Value))
		result, err := c.Txn(ctx, client.Txn{
			If: []client.Compare{client.HasETag(a.Key, a.ETag), client.HasETag(b.Key, b.ETag)},
			Then: []client.Op{
				client.SetOp(a.Key, []byte(strconv.Itoa(ofA-1))),
				client.SetOp(b.Key, []byte(strconv.Itoa(ofB+1))),
			},
		})
		return result.Held, err
	}
	_ = move
}

// A copy of all keys with a prefix, which is kept up to date.
func ExampleClient_ListWatch() {
	follow := func(ctx context.Context, c *client.Client) error {
		config := make(map[string][]byte)
		for event, err := range c.ListWatch(ctx, "config/") {
			if err != nil {
				return err
			}
			if event.Reset {
				clear(config)
			}
			for _, item := range event.Items {
				config[item.Key] = item.Value
			}
			for _, change := range event.Changes {
				if config[change.Key] = change.Value; change.Removed {
					delete(config, change.Key)
				}
			}
		}
		return nil
	}
	_ = follow
}
