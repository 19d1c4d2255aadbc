package logclient

import (
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/internal/durable"
)

// The members file holds one TailResponse with its handshake (the log that the list is of) and its membership.

// readMembers returns the persisted members of the wanted log. A list of another log, or a damaged file, is no
// error: the file is a hint, and the configured addresses serve as well.
func readMembers(path string, clusterID, epoch uint64) ([]*logv1.Member, error) {
	if path == "" {
		return nil, nil
	}
	record, err := durable.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	saved := &logv1.TailResponse{}
	if err := proto.Unmarshal(record, saved); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	handshake := saved.GetHandshake()
	if clusterID == 0 || handshake.GetClusterId() != clusterID || (epoch != 0 && handshake.GetEpoch() != epoch) {
		return nil, nil
	}
	return saved.GetMembership().GetMembers(), nil
}

// writeMembers persists the member list of a log, replacing the file in one step.
func writeMembers(path string, clusterID, epoch uint64, membership *logv1.Membership) error {
	record, err := proto.Marshal(&logv1.TailResponse{
		Handshake:  &logv1.Handshake{ClusterId: clusterID, Epoch: epoch},
		Membership: membership,
	})
	if err != nil {
		return err
	}
	return durable.Write(path, record)
}
