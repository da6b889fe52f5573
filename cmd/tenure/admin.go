package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
)

var errNoServer = errors.New("no tenure answers (TENURE_ADMIN_LISTEN)")

// askAdmin sends one request to the admin side of a running server, which is
// found at TENURE_ADMIN_LISTEN. Statuses other than 200 and those wanted become errors
// with the server's own words. The caller closes the body.
func askAdmin(ctx context.Context, cfg *config, method, path, body string, wanted ...int) (*http.Response, error) {
	host, port, err := net.SplitHostPort(cfg.AdminListen)
	if err != nil {
		return nil, err
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1" // a server that listens everywhere listens here
	}
	url := "http://" + net.JoinHostPort(host, port) + path
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if cfg.AdminKey != "" {
		req.Header.Set("Authorization", "Bearer "+cfg.AdminKey)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoServer, err)
	}
	if resp.StatusCode == http.StatusOK || slices.Contains(wanted, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what could be read is what there is to tell
	var refused struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(raw, &refused) == nil && refused.Error.Message != "" {
		return nil, errors.New(refused.Error.Message)
	}
	return nil, fmt.Errorf("%s answered %s", url, resp.Status)
}

// readAdmin is askAdmin for a GET whose answer is JSON; raw is what came.
func readAdmin(ctx context.Context, cfg *config, path string, into any) (raw []byte, err error) {
	resp, err := askAdmin(ctx, cfg, http.MethodGet, path, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err = io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return raw, nil
}
