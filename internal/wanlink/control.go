package wanlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/logmirror/logmirror/internal/tlsfiles"
	"github.com/logmirror/logmirror/internal/wan"
)

// Bounds of requests and answers.
const (
	requestBytesMax = 4 << 10
	answerBytesMax  = 1 << 20
	// RoundTripMax bounds the round trip between two regions.
	RoundTripMax = 10 * time.Second
)

// Link is the state of one direction between two regions.
type Link struct {
	From              string  `json:"from"`
	To                string  `json:"to"`
	DelayMilliseconds float64 `json:"delay_ms"`
	LossProbability   float64 `json:"loss"`
	Cut               bool    `json:"cut"`
	SentBytes         uint64  `json:"sent_bytes"`
}

// Request changes links; which one is needed of the last two depends on the path.
type Request struct {
	From                  string   `json:"from,omitempty"`
	To                    string   `json:"to,omitempty"`
	OneWay                bool     `json:"one_way,omitempty"`
	RoundTripMilliseconds *float64 `json:"round_trip_ms,omitempty"`
	LossProbability       *float64 `json:"loss,omitempty"`
}

type linksAnswer struct {
	Links []Link `json:"links"`
}

// Paths of the control.
const (
	pathLinks     = "/v1/links"
	PathCut       = "/v1/cut"
	PathHeal      = "/v1/heal"
	PathRoundTrip = "/v1/round-trip"
	PathLoss      = "/v1/loss"
)

// change does what one path asks for to the link between two regions.
type change func(n *wan.Network, a, b string, request Request) error

var changes = map[string]change{
	PathCut: func(n *wan.Network, a, b string, request Request) error {
		if request.OneWay {
			n.CutOneWay(a, b)
		} else {
			n.Cut(a, b)
		}
		return nil
	},
	PathHeal: func(n *wan.Network, a, b string, _ Request) error {
		n.Heal(a, b)
		return nil
	},
	PathRoundTrip: func(n *wan.Network, a, b string, request Request) error {
		most := float64(RoundTripMax / time.Millisecond)
		if request.RoundTripMilliseconds == nil || *request.RoundTripMilliseconds < 0 || *request.RoundTripMilliseconds > most {
			return fmt.Errorf("round_trip_ms must be there, from 0 to %g", most)
		}
		n.SetRoundTrip(a, b, time.Duration(*request.RoundTripMilliseconds*float64(time.Millisecond)))
		return nil
	},
	PathLoss: func(n *wan.Network, a, b string, request Request) error {
		if request.LossProbability == nil || *request.LossProbability < 0 || *request.LossProbability > 1 {
			return errors.New("loss must be there, from 0 to 1")
		}
		n.SetLoss(a, b, *request.LossProbability)
		return nil
	},
}

// Handler serves the control of a network's links.
func Handler(network *wan.Network, logger *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathLinks, func(w http.ResponseWriter, _ *http.Request) { writeLinks(w, network) })
	for path, apply := range changes {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := requireOperator(r); err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			request, pairs, err := readRequest(w, r, network)
			for _, pair := range pairs {
				if err == nil {
					err = apply(network, pair.A, pair.B, request)
				}
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			logger.Info("links changed", "path", path, "from", request.From, "to", request.To, "one_way", request.OneWay)
			writeLinks(w, network)
		})
	}
	return mux
}

// requireOperator looks at the certificate where the listener asked for one.
func requireOperator(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	identity, err := tlsfiles.IdentityOf(r.TLS.VerifiedChains[0][0])
	if err != nil {
		return err
	}
	if identity.Role != tlsfiles.RoleOperator {
		return fmt.Errorf("links are changed by operators only, and the certificate is of %s", identity)
	}
	return nil
}

// readRequest returns the request and the pairs that it is about, in the direction that it says.
func readRequest(w http.ResponseWriter, r *http.Request, network *wan.Network) (request Request, pairs []wan.Pair, err error) {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestBytesMax))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil && !errors.Is(err, io.EOF) { // nothing at all is a request about every link
		return request, nil, fmt.Errorf("the request is no JSON object as documented: %w", err)
	}
	pairs, err = pairsOf(request, network.Regions())
	return request, pairs, err
}

func pairsOf(request Request, regions []string) (pairs []wan.Pair, err error) {
	for field, name := range map[string]string{"from": request.From, "to": request.To} {
		if name != "" && !slices.Contains(regions, name) {
			return nil, fmt.Errorf("%s: no region %q; there are: %s", field, name, strings.Join(regions, ", "))
		}
	}
	if request.From == request.To && request.From != "" {
		return nil, fmt.Errorf("from and to are both %s: there is no link within a region", request.From)
	}
	if request.From == "" && request.To != "" {
		return nil, errors.New("to without from")
	}
	if request.OneWay && request.To == "" {
		return nil, errors.New("one_way needs from and to")
	}
	for i, a := range regions {
		for _, b := range regions[i+1:] {
			switch {
			case request.From == "", request.To == "" && (a == request.From || b == request.From),
				a == request.From && b == request.To:
				pairs = append(pairs, wan.Pair{A: a, B: b})
			case b == request.From && a == request.To:
				pairs = append(pairs, wan.Pair{A: b, B: a})
			}
		}
	}
	return pairs, nil
}

func writeLinks(w http.ResponseWriter, network *wan.Network) {
	answer := linksAnswer{Links: []Link{}}
	for _, state := range network.Links() {
		answer.Links = append(answer.Links, Link{
			From: state.From, To: state.To, DelayMilliseconds: float64(state.Delay) / float64(time.Millisecond),
			LossProbability: state.LossProbability, Cut: state.Cut, SentBytes: state.SentBytes,
		})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}

// Client asks a control.
type Client struct {
	URL  string // scheme and host:port
	HTTP *http.Client
}

// Links returns the state of every link.
func (c Client) Links(ctx context.Context) ([]Link, error) {
	return c.do(ctx, http.MethodGet, pathLinks, nil)
}

// Change posts a request to one of the paths and returns the links after it.
func (c Client) Change(ctx context.Context, path string, request Request) ([]Link, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, path, body)
}

func (c Client) do(ctx context.Context, method, path string, body []byte) ([]Link, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := c.HTTP.Do(request)
	if err != nil {
		if cause := new(url.Error); errors.As(err, &cause) {
			err = cause.Err // the rest only repeats what was asked
		}
		return nil, fmt.Errorf("the control at %s: %w", c.URL, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, answerBytesMax))
	if err != nil {
		return nil, fmt.Errorf("the control at %s: %w", c.URL, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the control at %s refuses: %s", c.URL, strings.TrimSpace(string(data)))
	}
	var answer linksAnswer
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("the control at %s: %w", c.URL, err)
	}
	return answer.Links, nil
}
