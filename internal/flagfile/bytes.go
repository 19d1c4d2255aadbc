package flagfile

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

var byteUnits = []string{"KiB", "MiB", "GiB", "TiB"}

var errBytes = errors.New("want bytes, or a size such as 512MiB")

// ParseBytes reads a number of bytes, or a whole number of KiB, MiB, GiB or TiB. It is not negative.
func ParseBytes(text string) (int64, error) {
	shift := 0
	for i, unit := range byteUnits {
		if number, ok := strings.CutSuffix(text, unit); ok {
			text, shift = number, 10*(i+1)
		}
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || value < 0 || value > math.MaxInt64>>shift {
		return 0, errBytes
	}
	return value << shift, nil
}

// FormatBytes is the shortest text that ParseBytes reads as the value.
func FormatBytes(value int64) string {
	unit := ""
	for _, next := range byteUnits {
		if value == 0 || value%1024 != 0 {
			break
		}
		value, unit = value/1024, next
	}
	return strconv.FormatInt(value, 10) + unit
}

// BytesVar adds a flag whose value is a size in bytes.
func BytesVar[N int | int64](flags *pflag.FlagSet, to *N, name string, value N, usage string) {
	*to = value
	flags.Var(bytesValue[N]{to}, name, usage)
}

type bytesValue[N int | int64] struct{ to *N }

func (b bytesValue[N]) Set(text string) error {
	value, err := ParseBytes(text)
	if err != nil {
		return err
	}
	if int64(N(value)) != value {
		return fmt.Errorf("%d is too large", value)
	}
	*b.to = N(value)
	return nil
}

func (b bytesValue[N]) String() string {
	if b.to == nil { // of the zero value, which pflag compares defaults with
		return ""
	}
	return FormatBytes(int64(*b.to))
}

func (b bytesValue[N]) Type() string { return "bytes" }
