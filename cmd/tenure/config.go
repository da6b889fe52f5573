package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"tenure/proxy/ollama"

	"github.com/caarlos0/env/v11"
	"github.com/dustin/go-humanize"
	"github.com/joho/godotenv"
)

// config is every setting there is. This file is the only place that reads the
// environment; the tags are also what --print-config and the README's table
// are made of.
type config struct {
	Listen         string   `env:"TENURE_LISTEN" envDefault:"127.0.0.1:11435" allowed:"host:port" doc:"where the OpenAI API listens"`
	AdminListen    string   `env:"TENURE_ADMIN_LISTEN" envDefault:"127.0.0.1:11436" allowed:"host:port" doc:"where the admin side listens: state, metrics"`
	APIKeys        []string `env:"TENURE_API_KEYS" allowed:"keys of 16 characters or more, separated by commas" doc:"keys of the API; needed to listen beyond loopback" secret:"true"`
	KeysFile       string   `env:"TENURE_KEYS_FILE" allowed:"a file" doc:"more keys, with names, models and limits: tenure keys writes it; a change is seen within a second"`
	CORSOrigins    []string `env:"TENURE_CORS_ORIGINS" allowed:"origins such as https://chat.example, separated by commas" doc:"whose web pages may call the API; none: no page from elsewhere"`
	AdminKey       string   `env:"TENURE_ADMIN_KEY" allowed:"a key of 16 characters or more" doc:"key of the admin side; needed to listen beyond loopback" secret:"true"`
	AllowAnonymous bool     `env:"TENURE_ALLOW_ANONYMOUS" envDefault:"false" allowed:"true or false" doc:"listen beyond loopback without keys all the same"`

	OllamaHost  string `env:"OLLAMA_HOST" envDefault:"127.0.0.1:11434" allowed:"host, host:port or a URL" doc:"the Ollama to manage; 0.0.0.0 means this machine"`
	RequireGPU  string `env:"TENURE_REQUIRE_GPU" envDefault:"auto" allowed:"auto, true or false" doc:"whether a model that landed in main memory is an error; auto: once one was seen on a GPU"`
	AllowRemote bool   `env:"TENURE_ALLOW_REMOTE" envDefault:"false" allowed:"true or false" doc:"use models that Ollama runs elsewhere: prompts would leave this machine"`
	Catalog     string `env:"TENURE_CATALOG" allowed:"a YAML file" doc:"replaces the built-in catalog of models and tasks"`

	Optimize  bool    `env:"A5000_OPTIMIZATION" envDefault:"true" allowed:"true or false" doc:"manage which models are resident; false: forward at once, manage nothing"`
	MaxModels int     `env:"MAX_CONCURRENT_MODELS" envDefault:"3" allowed:"1 to 64" doc:"resident models at once; Ollama's own limit is 3 a GPU unless OLLAMA_MAX_LOADED_MODELS is set"`
	Memory    float64 `env:"MEMORY_THRESHOLD" envDefault:"20" allowed:"GiB, up to 1024" doc:"GPU memory that models may take: 24 of an A5000, less 4 for the system"`
	NVML      string  `env:"TENURE_NVML" envDefault:"auto" allowed:"auto, true or false" doc:"read the GPU's own figures, so that other processes' memory is left alone; auto: when Ollama runs on this machine"`
	Ledger    string  `env:"TENURE_LEDGER" allowed:"a file, or none" doc:"where the sizes that models were measured with are kept across restarts; unset: tenure/ledger.json in the user's cache folder"`
	Preload   bool    `env:"PRELOAD_RECRUITMENT_MODELS" envDefault:"true" allowed:"true or false" doc:"load the T1 models at start, too; T0 is always loaded"`

	Policy       string        `env:"TENURE_POLICY" envDefault:"latency" allowed:"latency, balanced or economy" doc:"what swaps are for: the shortest waits, fewer swaps, or as few as can be"`
	MaxWait      time.Duration `env:"TENURE_MAX_WAIT" envDefault:"40s" allowed:"a duration, 1s to 10m" doc:"an interactive request that has waited this long for its model goes first"`
	Connect      time.Duration `env:"TENURE_CONNECT_TIMEOUT" envDefault:"5s" allowed:"a duration, 100ms to 1m" doc:"longest wait for a connection to Ollama"`
	QueueTimeout time.Duration `env:"TENURE_QUEUE_TIMEOUT" envDefault:"2m" allowed:"a duration, 1s to 1h" doc:"a request that has waited this long for a seat, a load included, is refused with 429"`
	QueueLimit   int           `env:"TENURE_QUEUE_LIMIT" envDefault:"256" allowed:"1 to 100000" doc:"requests that may wait for one model; more are refused with 429"`
	QueueBytes   size          `env:"TENURE_QUEUE_BYTES" envDefault:"256MiB" allowed:"a size such as 256MiB, 1MiB to 64GiB" doc:"bodies of all requests that wait or run; more are refused with 429"`
	LoadTimeout  time.Duration `env:"TENURE_LOAD_TIMEOUT" envDefault:"5m" allowed:"a duration, 1s to 1h" doc:"longest load of a model; who waits for it is told, and the next request tries again"`
	FirstByte    time.Duration `env:"TENURE_FIRST_BYTE_TIMEOUT" envDefault:"2m" allowed:"a duration, 1s to 1h" doc:"longest wait for an answer's first token, counted from the seat"`
	IdleTimeout  time.Duration `env:"TENURE_IDLE_TIMEOUT" envDefault:"1m" allowed:"a duration, 1s to 1h" doc:"longest silence of a model between two tokens"`
	TotalTimeout time.Duration `env:"TENURE_TOTAL_TIMEOUT" envDefault:"15m" allowed:"a duration, 1s to 24h" doc:"longest answer, from seat to last token"`
	WholeTimeout time.Duration `env:"TENURE_WHOLE_TIMEOUT" envDefault:"290s" allowed:"a duration, 1s to 24h" doc:"longest time from a request's arrival to an answer that is no stream: Node's fetch gives up after 300s, and its clients ask again"`
	StallTimeout time.Duration `env:"TENURE_STALL_TIMEOUT" envDefault:"1m" allowed:"a duration, 1s to 1h" doc:"a client that reads nothing for this long is cut off"`
	StopTimeout  time.Duration `env:"TENURE_STOP_TIMEOUT" envDefault:"30s" allowed:"a duration, 0s to 1h" doc:"how long answers under way may take to finish at shutdown"`

	BreakerFaults int           `env:"TENURE_BREAKER_FAULTS" envDefault:"5" allowed:"0 to 1000" doc:"requests in a row that a model fails before it is given a rest: its tasks go to their fallbacks; 0: never"`
	BreakerPause  time.Duration `env:"TENURE_BREAKER_PAUSE" envDefault:"30s" allowed:"a duration, 1s to 1h" doc:"how long such a rest is, until one request tries again"`

	CacheSize size `env:"TENURE_CACHE_SIZE" envDefault:"64MiB" allowed:"a size such as 64MiB, 0 to 64GiB" doc:"memory for kept answers; 0 keeps none"`
	BodyLimit size `env:"TENURE_BODY_LIMIT" envDefault:"32MiB" allowed:"a size such as 32MiB, 1KiB to 1GiB" doc:"largest request; larger ones are refused with 413"`
	MaxTokens int  `env:"TENURE_MAX_TOKENS" envDefault:"8192" allowed:"1 to 1048576" doc:"most tokens an answer may have, whatever the client asks for"`

	Connections           int `env:"TENURE_MAX_CONNECTIONS" envDefault:"2048" allowed:"0 to 1000000" doc:"connections to each listener; more are refused with 503; 0: no limit"`
	ConnectionsPerAddress int `env:"TENURE_MAX_CONNECTIONS_PER_ADDRESS" envDefault:"256" allowed:"0 to 1000000" doc:"of these, from one address that is not loopback (of IPv6: one /64); more are refused with 429; 0: no limit"`

	LogFormat string `env:"TENURE_LOG_FORMAT" envDefault:"text" allowed:"text or json" doc:"form of the log on standard error"`
	LogLevel  string `env:"TENURE_LOG_LEVEL" envDefault:"info" allowed:"debug, info, warn or error" doc:"least level that is logged"`
}

// size is an amount of bytes, written as 64MiB or 1GB.
type size uint64

func (s *size) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	*s = size(n)
	return err
}

func (s size) String() string { return strings.ReplaceAll(humanize.IBytes(uint64(s)), " ", "") }

// loadConfig reads and checks every setting. The error names each wrong
// variable, what was read, and what is allowed.
func (p *program) loadConfig() (*config, error) {
	environ := map[string]string{}
	if p.envFile != "" {
		file, err := godotenv.Read(p.envFile)
		if err != nil {
			return nil, usageError{fmt.Errorf("--env-file: %w", err)}
		}
		environ = file
	}
	for name, value := range p.environ {
		if value != "" { // set to nothing is not set
			environ[name] = value
		}
	}
	maps.DeleteFunc(environ, func(_, value string) bool { return value == "" })
	c := &config{}
	unreadable := map[string]bool{}
	var wrong []error
	if err := env.ParseWithOptions(c, env.Options{Environment: environ}); err != nil {
		aggregate, ok := errors.AsType[env.AggregateError](err)
		if !ok {
			return nil, usageError{err}
		}
		for _, e := range aggregate.Errors {
			field, ok := errors.AsType[env.ParseError](e)
			if !ok {
				return nil, usageError{e}
			}
			unreadable[field.Name] = true
			wrong = append(wrong, refusal(field.Name, environ, ""))
		}
	}
	c.AdminKey = strings.TrimSpace(c.AdminKey)
	for i, k := range c.APIKeys {
		c.APIKeys[i] = strings.TrimSpace(k)
	}
	for i, o := range c.CORSOrigins {
		c.CORSOrigins[i] = strings.TrimSpace(o)
	}
	wrong = append(wrong, c.check(environ, unreadable)...)
	if len(wrong) > 0 {
		return nil, usageError{errors.Join(wrong...)}
	}
	c.Ledger = ledgerFile(c.Ledger, environ)
	return c, nil
}

// ledgerFile is where to keep the ledger: noLedger where there is no place.
func ledgerFile(set string, environ map[string]string) string {
	switch dir := cmp.Or(environ["XDG_CACHE_HOME"], environ["LOCALAPPDATA"]); {
	case set != "":
		return set
	case dir != "":
		return filepath.Join(dir, "tenure", "ledger.json")
	case environ["HOME"] != "":
		return filepath.Join(environ["HOME"], ".cache", "tenure", "ledger.json")
	}
	return noLedger
}

// noLedger is the value of TENURE_LEDGER that keeps nothing.
const noLedger = "none"

// setting is one field of config, by its tags.
type setting struct {
	field, name, standard, allowed, doc string
	secret                              bool
}

func settings() []setting {
	var list []setting
	t := reflect.TypeFor[config]()
	for f := range t.Fields() {
		list = append(list, setting{
			field: f.Name, name: f.Tag.Get("env"), standard: f.Tag.Get("envDefault"),
			allowed: f.Tag.Get("allowed"), doc: f.Tag.Get("doc"), secret: f.Tag.Get("secret") == "true",
		})
	}
	return list
}

// refusal says what is wrong with one variable.
func refusal(field string, environ map[string]string, more string) error {
	i := slices.IndexFunc(settings(), func(s setting) bool { return s.field == field })
	s := settings()[i]
	read := strconv.Quote(environ[s.name])
	if environ[s.name] == "" {
		read = strconv.Quote(s.standard) + " (the default)"
	}
	if s.secret || strings.Contains(read, "@") {
		read = "something that may be a secret"
	}
	if more != "" {
		more = ": " + more
	}
	return fmt.Errorf("%s: %s was read, %s is allowed%s", s.name, read, s.allowed, more)
}

// check looks at what types do not tell, in the settings that could be read.
func (c *config) check(environ map[string]string, unreadable map[string]bool) (wrong []error) {
	bad := func(field, more string) { wrong = append(wrong, refusal(field, environ, more)) }
	within := func(field string, ok bool) {
		if !ok && !unreadable[field] {
			bad(field, "")
		}
	}
	duration := func(field string, d, least, most time.Duration) { within(field, least <= d && d <= most) }
	duration("MaxWait", c.MaxWait, time.Second, 10*time.Minute)
	duration("Connect", c.Connect, 100*time.Millisecond, time.Minute)
	duration("FirstByte", c.FirstByte, time.Second, time.Hour)
	duration("QueueTimeout", c.QueueTimeout, time.Second, time.Hour)
	duration("LoadTimeout", c.LoadTimeout, time.Second, time.Hour)
	duration("IdleTimeout", c.IdleTimeout, time.Second, time.Hour)
	duration("TotalTimeout", c.TotalTimeout, time.Second, 24*time.Hour)
	duration("WholeTimeout", c.WholeTimeout, time.Second, 24*time.Hour)
	duration("StallTimeout", c.StallTimeout, time.Second, time.Hour)
	duration("StopTimeout", c.StopTimeout, 0, time.Hour)
	within("BreakerFaults", 0 <= c.BreakerFaults && c.BreakerFaults <= 1000)
	duration("BreakerPause", c.BreakerPause, time.Second, time.Hour)
	within("MaxModels", 1 <= c.MaxModels && c.MaxModels <= 64)
	within("Memory", 0 < c.Memory && c.Memory <= 1024)
	within("QueueLimit", 1 <= c.QueueLimit && c.QueueLimit <= 100_000)
	within("QueueBytes", 1<<20 <= c.QueueBytes && c.QueueBytes <= 64<<30)
	if !unreadable["QueueBytes"] && !unreadable["BodyLimit"] && c.QueueBytes < c.BodyLimit {
		bad("QueueBytes", "one request may have "+c.BodyLimit.String()+" (TENURE_BODY_LIMIT)")
	}
	within("Connections", 0 <= c.Connections && c.Connections <= 1_000_000)
	within("ConnectionsPerAddress", 0 <= c.ConnectionsPerAddress && c.ConnectionsPerAddress <= 1_000_000)
	within("MaxTokens", 1 <= c.MaxTokens && c.MaxTokens <= 1<<20)
	within("CacheSize", c.CacheSize <= 64<<30)
	within("BodyLimit", 1<<10 <= c.BodyLimit && c.BodyLimit <= 1<<30)
	within("RequireGPU", slices.Contains([]string{"auto", "true", "false"}, c.RequireGPU))
	within("NVML", slices.Contains([]string{"auto", "true", "false"}, c.NVML))
	within("Policy", slices.Contains([]string{"latency", "balanced", "economy"}, c.Policy))
	within("LogFormat", slices.Contains([]string{"text", "json"}, c.LogFormat))
	within("LogLevel", slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel))
	for _, k := range c.APIKeys {
		within("APIKeys", !tooShort(k))
	}
	for _, o := range c.CORSOrigins {
		within("CORSOrigins", isOrigin(o))
	}
	within("AdminKey", c.AdminKey == "" || !tooShort(c.AdminKey))
	if _, err := ollama.ParseHost(c.OllamaHost); err != nil {
		bad("OllamaHost", err.Error())
	}
	guard := func(field, address string, guarded bool, key string) {
		loopback, err := isLoopback(address)
		switch {
		case err != nil:
			bad(field, err.Error())
		case !loopback && !guarded && !c.AllowAnonymous:
			bad(field, "beyond loopback it needs "+key+", or TENURE_ALLOW_ANONYMOUS=true")
		}
	}
	keys := c.KeysFile != "" || len(c.APIKeys) > 0 && !slices.ContainsFunc(c.APIKeys, tooShort)
	guard("Listen", c.Listen, keys, "TENURE_KEYS_FILE or TENURE_API_KEYS")
	guard("AdminListen", c.AdminListen, !tooShort(c.AdminKey), "TENURE_ADMIN_KEY")
	return wrong
}

// tooShort reports a key that could be guessed.
func tooShort(key string) bool { return len(key) < 16 }

// isOrigin reports an origin as browsers write it, which is compared as it is.
func isOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && s == strings.ToLower(u.Scheme+"://"+u.Host) && !strings.Contains(s, "*")
}

// isLoopback reports whether only this machine can reach a listen address.
func isLoopback(address string) (bool, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, errors.New("it is not host:port")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return false, fmt.Errorf("the port %q is not a number from 0 to 65535", port)
	}
	if host == "localhost" {
		return true, nil
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback(), nil
}

// print writes the settings in force, as a file that --env-file reads.
func (c *config) print(p *program) {
	v := reflect.ValueOf(*c)
	for _, s := range settings() {
		value := fmt.Sprint(v.FieldByName(s.field).Interface())
		if keys, ok := reflect.TypeAssert[[]string](v.FieldByName(s.field)); ok {
			value = strings.Join(keys, ",")
		}
		if s.secret && value != "" {
			fmt.Fprintf(p.stdout, "# %s (%s)\n# %s is set and not shown\n\n", s.doc, s.allowed, s.name)
			continue
		}
		fmt.Fprintf(p.stdout, "# %s (%s)\n%s=%s\n\n", s.doc, s.allowed, s.name, value)
	}
}
