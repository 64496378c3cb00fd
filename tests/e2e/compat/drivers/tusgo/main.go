// The tus trials of registry.py with github.com/bdragon300/tusgo.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/bdragon300/tusgo"
)

func run(trial, root, path string) (string, error) {
	base, err := url.Parse(root + "/files/")
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	client := tusgo.NewClient(http.DefaultClient, base)
	if _, err = client.UpdateCapabilities(); err != nil {
		return "", err
	}
	size := int64(len(content))
	metadata := map[string]string{"filename": filepath.Base(path)}
	if trial == "tus-parallel" {
		return parallel(client, content, metadata)
	}
	upload := tusgo.Upload{}
	if trial == "tus-creation" {
		if _, _, err = client.CreateUploadWithData(&upload, content[:100_000], size, false, metadata); err != nil {
			return "", err
		}
	} else if trial == "tus-deferred" {
		if _, err = client.CreateUpload(&upload, tusgo.SizeUnknown, false, metadata); err != nil {
			return "", err
		}
		upload.RemoteSize = size
	} else if _, err = client.CreateUpload(&upload, size, false, metadata); err != nil {
		return "", err
	}
	stream := tusgo.NewUploadStream(client, &upload)
	stream.ChunkSize = 700_000
	if trial == "tus-whole" {
		stream.ChunkSize = tusgo.NoChunked
	}
	stream.SetUploadSize = trial == "tus-deferred"
	if trial == "tus-checksum" {
		stream = stream.WithChecksumAlgorithm("sha1")
	}
	if trial == "tus-resume" {
		if _, err = io.Copy(stream, bytes.NewReader(content[:900_000])); err != nil {
			return "", err
		}
		again := tusgo.Upload{}
		if _, err = client.GetUpload(&again, upload.Location); err != nil {
			return "", err
		}
		if again.RemoteOffset != 900_000 {
			return "", fmt.Errorf("the offset is %d", again.RemoteOffset)
		}
		upload = again
		stream = tusgo.NewUploadStream(client, &upload)
	}
	if _, err = io.Copy(stream, bytes.NewReader(content[stream.Tell():])); err != nil {
		return "", err
	}
	return upload.Location, nil
}

func parallel(client *tusgo.Client, content []byte, metadata map[string]string) (string, error) {
	var parts []tusgo.Upload
	for _, part := range [][]byte{content[:1_000_001], content[1_000_001:]} {
		upload := tusgo.Upload{}
		if _, err := client.CreateUpload(&upload, int64(len(part)), true, nil); err != nil {
			return "", err
		}
		if _, err := io.Copy(tusgo.NewUploadStream(client, &upload), bytes.NewReader(part)); err != nil {
			return "", err
		}
		parts = append(parts, upload)
	}
	final := tusgo.Upload{}
	_, err := client.ConcatenateUploads(&final, parts, metadata)
	return final.Location, err
}

func main() {
	for _, trial := range os.Args[5:] {
		line := map[string]any{"trial": trial}
		url, err := run(trial, os.Args[1], os.Args[3])
		if err != nil {
			line["error"] = err.Error()
		} else {
			line["url"] = url
		}
		said, _ := json.Marshal(line)
		fmt.Println(string(said))
	}
}
