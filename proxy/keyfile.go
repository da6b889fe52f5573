package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tenure/residency"

	"golang.org/x/time/rate"
)

// Client is one line of the key file: who holds a key, and what it may do. The
// key itself is not there, only its hash. A key has 256 random bits, so nobody
// finds it by trying, and a plain SHA-256 is enough.
type Client struct {
	Name        string    `json:"name"`
	Hash        KeyHash   `json:"hash"`
	Tenant      string    `json:"tenant,omitempty"`      // clients of one tenant share kept answers; empty: the client's name
	Models      []string  `json:"models,omitempty"`      // patterns of what it may ask for; nil: everything
	RPM         int       `json:"rpm,omitempty"`         // requests a minute; 0: no limit
	Concurrency int       `json:"concurrency,omitempty"` // requests at once; 0: no limit
	Priority    string    `json:"priority,omitempty"`    // interactive, which is also empty, or batch
	Created     time.Time `json:"created,omitzero"`
}

// KeyHash is the SHA-256 of a key. Its text is "sha256:" and 64 hexadecimal
// digits.
type KeyHash [sha256.Size]byte

const hashScheme = "sha256:"

// MarshalText returns the text.
func (h KeyHash) MarshalText() ([]byte, error) {
	return hex.AppendEncode([]byte(hashScheme), h[:]), nil
}

// UnmarshalText reads the text. The error does not repeat it: it may be a key
// that was put in the wrong place.
func (h *KeyHash) UnmarshalText(text []byte) error {
	digits, ok := bytes.CutPrefix(text, []byte(hashScheme))
	if !ok || len(digits) != hex.EncodedLen(len(h)) {
		return errHash
	}
	if _, err := hex.Decode(h[:], digits); err != nil {
		return errHash
	}
	return nil
}

var (
	errHash    = errors.New(`hash is not "sha256:" and 64 hexadecimal digits`)
	errKeyLine = errors.New("it is not one JSON object with name, hash and, if wanted, tenant, models, rpm, concurrency, priority, created")
)

// NewSecret returns a new key. Its beginning is what programs that look for
// leaked secrets, and some clients, know keys of this kind by.
func NewSecret() string {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the program instead
	return "sk-tenure-" + base64.RawURLEncoding.EncodeToString(random[:])
}

// HashSecret returns the hash that the key file keeps of a key.
func HashSecret(secret string) KeyHash { return sha256.Sum256([]byte(secret)) }

// ReadKeys reads a key file.
func ReadKeys(file string) ([]Client, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	clients, err := ParseKeys(src)
	if err != nil {
		return nil, fmt.Errorf("%s:\n%w", file, err)
	}
	return clients, nil
}

// ParseKeys reads a key file's text: one JSON object a line; empty lines and
// lines that begin with # are skipped. The error tells every mistake with its
// line, and nothing of what stands there but names.
func ParseKeys(src []byte) ([]Client, error) {
	var clients []Client
	var wrong []error
	names, hashes := map[string]int{}, map[KeyHash]int{}
	at := 0
	for line := range bytes.Lines(src) {
		at++
		c, ok, err := ParseKey(line)
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Errorf("line %d: %w", at, err))
		case !ok:
		case names[c.Name] > 0:
			wrong = append(wrong, fmt.Errorf("line %d: the name %s is taken by line %d", at, c.Name, names[c.Name]))
		case hashes[c.Hash] > 0:
			wrong = append(wrong, fmt.Errorf("line %d: the key of %s is that of line %d, too", at, c.Name, hashes[c.Hash]))
		default:
			names[c.Name], hashes[c.Hash] = at, at
			clients = append(clients, c)
		}
	}
	return clients, errors.Join(wrong...)
}

// ParseKey reads one line of a key file; ok is false when it holds no key.
func ParseKey(line []byte) (c Client, ok bool, err error) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] == '#' {
		return c, false, nil
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	err = d.Decode(&c)
	if errors.Is(err, errHash) {
		return Client{}, false, errHash
	}
	// What the decoder says of it may quote the line.
	if _, more := d.Token(); err != nil || !errors.Is(more, io.EOF) {
		return Client{}, false, errKeyLine
	}
	if err := c.Check(); err != nil {
		return Client{}, false, err
	}
	return c, true, nil
}

// Check tells what a client's line may not say.
func (c *Client) Check() error {
	switch {
	case !keyName(c.Name):
		return errors.New("name needs 1 to 64 letters, digits and . _ -")
	case c.Hash == KeyHash{}:
		return fmt.Errorf("%s: hash is missing", c.Name)
	case c.Tenant != "" && !keyName(c.Tenant):
		return fmt.Errorf("%s: tenant needs 1 to 64 letters, digits and . _ -", c.Name)
	case c.Models != nil && len(c.Models) == 0:
		return fmt.Errorf("%s: models is empty; leave it out to allow all", c.Name)
	case c.RPM < 0 || c.RPM > 1_000_000:
		return fmt.Errorf("%s: rpm is %d, 0 to 1000000 is allowed", c.Name, c.RPM)
	case c.Concurrency < 0 || c.Concurrency > 100_000:
		return fmt.Errorf("%s: concurrency is %d, 0 to 100000 is allowed", c.Name, c.Concurrency)
	case c.Priority != "" && c.Priority != residency.Interactive.String() && c.Priority != residency.Batch.String():
		return fmt.Errorf("%s: priority is neither interactive nor batch", c.Name)
	}
	for _, m := range c.Models {
		if m == "" || len(m) > 256 || strings.ContainsAny(m, " \t\r\n") {
			return fmt.Errorf("%s: a model's pattern needs 1 to 256 characters and no white space", c.Name)
		}
	}
	return nil
}

// keyName reports a name that can stand in logs, tables and command lines.
func keyName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= 64
}

// tenant is whose kept answers the client shares.
func (c *Client) tenant() string {
	if c.Tenant != "" {
		return c.Tenant
	}
	return c.Name
}

// class is the most urgent that the client's requests may be.
func (c *Client) class() residency.Class {
	if c.Priority == residency.Batch.String() {
		return residency.Batch
	}
	return residency.Interactive
}

// recheckKeys is how long a change of the key file may go unnoticed.
const recheckKeys = time.Second

// keyring holds who may use the API: fixed clients, and those of a file, which
// is looked at when a request comes, once a second at most. What is wrong with
// it is logged once, and the clients of before stay.
type keyring struct {
	fixed []Client
	file  string // empty: none
	log   *slog.Logger
	all   atomic.Pointer[[]*holder]

	mu   sync.Mutex // of who looks at the file
	due  time.Time
	seen fs.FileInfo // as it was read last; nil: it could not be looked at
	gone bool        // and that was logged
}

// holder is a client and what it uses. The counts outlive a change of the file.
type holder struct {
	Client
	limiter *rate.Limiter // nil: no limit
	active  *atomic.Int64
}

func newKeyring(keys []Key, file string, log *slog.Logger) *keyring {
	r := &keyring{file: file, log: log}
	for _, k := range keys {
		r.fixed = append(r.fixed, Client{Name: k.name, Hash: k.hash})
	}
	r.set(nil)
	r.refresh(time.Now())
	return r
}

// open reports that nobody needs a key.
func (r *keyring) open() bool { return len(r.fixed) == 0 && r.file == "" }

// find returns who holds a key. It takes the same time for every secret.
func (r *keyring) find(secret string) (*holder, bool) {
	r.refresh(time.Now())
	return match(*r.all.Load(), secret)
}

// refresh reads the file again when it has changed. Who comes while another
// looks does not wait: a disk may hang.
func (r *keyring) refresh(now time.Time) {
	if r.file == "" || !r.mu.TryLock() {
		return
	}
	defer r.mu.Unlock()
	if now.Before(r.due) {
		return
	}
	r.due = now.Add(recheckKeys)
	// In this order: what is written in between is seen the next time.
	info, err := os.Stat(r.file)
	if err != nil {
		if !r.gone {
			r.log.Warn("key file could not be read, its keys are as before", "err", err)
		}
		r.seen, r.gone = nil, true
		return
	}
	if r.seen != nil && os.SameFile(r.seen, info) && r.seen.ModTime().Equal(info.ModTime()) && r.seen.Size() == info.Size() {
		return
	}
	r.seen, r.gone = info, false
	clients, err := ReadKeys(r.file)
	if err != nil {
		r.log.Warn("key file could not be read, its keys are as before", "err", err)
		return
	}
	r.set(clients)
	r.log.Info("key file read", "keys", len(clients))
}

// set replaces the clients of the file. Who has the same key as before keeps
// its counts, so that no change of the file gives anybody a fresh minute.
func (r *keyring) set(clients []Client) {
	old := map[KeyHash]*holder{}
	if p := r.all.Load(); p != nil {
		for _, h := range *p {
			old[h.Hash] = h
		}
	}
	var all []*holder
	// A key that is in both has the limits of the file: match takes the last.
	for _, c := range slices.Concat(r.fixed, clients) {
		h := &holder{Client: c, active: new(atomic.Int64)}
		before := old[c.Hash]
		if before != nil {
			h.active = before.active
		}
		switch {
		case c.RPM == 0:
		case before != nil && before.limiter != nil:
			h.limiter = before.limiter
			h.limiter.SetBurst(c.RPM)
			h.limiter.SetLimit(perMinute(c.RPM))
		default:
			h.limiter = rate.NewLimiter(perMinute(c.RPM), c.RPM)
		}
		all = append(all, h)
	}
	r.all.Store(&all)
}

func perMinute(n int) rate.Limit { return rate.Limit(float64(n) / time.Minute.Seconds()) }
