package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tenure/proxy"

	"github.com/spf13/cobra"
)

func (p *program) keysCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, list and revoke keys of the API",
		Long: `Make, list and revoke the keys in the file that TENURE_KEYS_FILE names. It holds
their hashes and what each may do, one JSON object a line. A running server sees
a change within a second.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.createKeyCmd(), p.listKeysCmd(), p.revokeKeyCmd())
	return cmd
}

func (p *program) createKeyCmd() *cobra.Command {
	var c proxy.Client
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a key and print it, this once",
		Example: `  tenure keys create ats --models 'recruit/*,mistral' --rpm 60
  tenure keys create nightly --priority batch --concurrency 4 --tenant hr`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := p.keysFile()
			if err != nil {
				return err
			}
			secret := proxy.NewSecret()
			c.Name, c.Hash, c.Created = args[0], proxy.HashSecret(secret), time.Now().UTC().Truncate(time.Second)
			if err := c.Check(); err != nil {
				return usageError{err}
			}
			line, err := json.Marshal(c)
			if err != nil {
				return err
			}
			err = editKeys(file, func(src []byte, clients []proxy.Client) ([]byte, error) {
				for _, other := range clients {
					if other.Name == c.Name {
						return nil, fmt.Errorf("there is a key named %s; revoke it first, or take another name", c.Name)
					}
				}
				if len(src) > 0 && !bytes.HasSuffix(src, []byte("\n")) {
					src = append(src, '\n')
				}
				return append(append(src, line...), '\n'), nil
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(p.stderr, "This is the only time that the key is shown; its hash is in", file)
			fmt.Fprintln(p.stdout, secret)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&c.Models, "models", nil, "models it may ask for, separated by commas, * stands for anything: 'recruit/*' (default all)")
	f.IntVar(&c.RPM, "rpm", 0, "requests a minute (default no limit)")
	f.IntVar(&c.Concurrency, "concurrency", 0, "requests at once (default no limit)")
	f.StringVar(&c.Tenant, "tenant", "", "whose kept answers it shares (default its own)")
	f.StringVar(&c.Priority, "priority", "", "interactive, or batch: its requests wait for everybody else's (default interactive)")
	return cmd
}

func (p *program) listKeysCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the keys and what each may do",
		Args:  cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			file, err := p.keysFile()
			if err != nil {
				return err
			}
			clients, err := proxy.ReadKeys(file)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return p.printKeys(clients)
		},
	}
}

func (p *program) printKeys(clients []proxy.Client) error {
	t := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tTENANT\tMODELS\tRPM\tCONCURRENCY\tPRIORITY\tCREATED")
	or := func(s, empty string) string {
		if s == "" || s == "0" {
			return empty
		}
		return s
	}
	for _, c := range clients {
		created := "-"
		if !c.Created.IsZero() {
			created = c.Created.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, or(c.Tenant, c.Name), or(strings.Join(c.Models, ","), "all"),
			or(strconv.Itoa(c.RPM), "-"), or(strconv.Itoa(c.Concurrency), "-"), or(c.Priority, "interactive"), created)
	}
	return t.Flush()
}

func (p *program) revokeKeyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take a key out of the file",
		Long:  "Take a key out of the file. Requests that it has under way are let finish.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := p.keysFile()
			if err != nil {
				return err
			}
			err = editKeys(file, func(src []byte, _ []proxy.Client) ([]byte, error) {
				var kept []byte
				for line := range bytes.Lines(src) {
					if c, ok, err := proxy.ParseKey(line); err != nil || !ok || c.Name != args[0] {
						kept = append(kept, line...)
					}
				}
				if len(kept) == len(src) {
					return nil, errors.New("there is no such key; tenure keys list shows those there are")
				}
				return kept, nil
			})
			if err == nil {
				fmt.Fprintln(p.stdout, "revoked", args[0])
			}
			return err
		},
	}
}

func (p *program) keysFile() (string, error) {
	cfg, err := p.loadConfig()
	if err != nil {
		return "", err
	}
	if cfg.KeysFile == "" {
		return "", usageError{errors.New("TENURE_KEYS_FILE is not set: it names the file that keys are kept in")}
	}
	return cfg.KeysFile, nil
}

// editKeys replaces the key file by what edit makes of it, at once: a server
// sees the old file or the new one. The new one is also the lock that keeps two
// edits apart. Comments stay.
func editKeys(file string, edit func(src []byte, clients []proxy.Client) ([]byte, error)) (err error) {
	next, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: another tenure keys is at work, or was interrupted; if none is, remove that file", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = next.Close() // it may be closed, and is given up anyway
			err = errors.Join(err, os.Remove(next.Name()))
		}
	}()
	src, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	clients, err := proxy.ParseKeys(src)
	if err != nil {
		return fmt.Errorf("%s:\n%w", file, err)
	}
	if src, err = edit(src, clients); err != nil {
		return err
	}
	if _, err = next.Write(src); err != nil {
		return err
	}
	if err = next.Sync(); err != nil {
		return err
	}
	if err = next.Close(); err != nil {
		return err
	}
	return os.Rename(next.Name(), file)
}
