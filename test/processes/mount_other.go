//go:build !linux

package processes

import "errors"

func mountTemporary(string, int64) error { return errors.ErrUnsupported }

func unmount(string) error { return errors.ErrUnsupported }
