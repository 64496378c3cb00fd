// The trials of registry.py with the JDK's java.net.http client: `java Jdk.java …`.

import java.io.IOException;
import java.io.InputStream;
import java.io.RandomAccessFile;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.HexFormat;
import java.util.Map;
import java.util.TreeMap;

public class Jdk {
  static final HttpClient CLIENT = HttpClient.newBuilder()
      .version(HttpClient.Version.HTTP_1_1).proxy(HttpClient.Builder.NO_PROXY).build();
  static String root, limited, name;
  static Path path;
  static byte[] content;

  public static void main(String[] args) throws Exception {
    root = args[0];
    limited = args[1];
    path = Path.of(args[2]);
    name = args[3];
    content = Files.readAllBytes(path);
    for (int i = 4; i < args.length; i++) {
      try {
        run(args[i]);
      } catch (Exception error) {
        System.out.println("{\"trial\": " + quoted(args[i]) + ", \"status\": 0, \"error\": "
            + quoted(error.toString()) + "}");
      }
    }
  }

  static void run(String trial) throws Exception {
    String type = "application/octet-stream";
    switch (trial) {
      case "put" -> say(trial, send(
          request("/files/" + name + "-put", "Content-Type", type), "PUT", whole()), "");
      case "stream" -> say(trial, send(
          request("/files/", "Content-Type", type), "POST",
          BodyPublishers.ofInputStream(() -> stream(0, content.length))), "");
      case "prefer" -> say(trial, send(
          request("/files/" + name + "-prefer", "Content-Type", type, "Prefer", "resume"),
          "PUT", whole()), "");
      case "expect" -> say(trial, send(
          request("/files/" + name + "-expect", "Content-Type", type, "Prefer", "resume")
              .expectContinue(true), "PUT", whole()), "");
      case "interim" -> say(trial, send(
          request("/files/", "Content-Type", type, "Upload-Complete", "?1",
              "Upload-Draft-Interop-Version", "6"), "POST", whole()), "");
      case "resume" -> resume();
      case "refused" -> say(trial, send(
          HttpRequest.newBuilder(URI.create(limited + "/files/" + name + "-refused"))
              .timeout(Duration.ofSeconds(20)).header("Content-Type", type), "PUT", whole()), "");
      case "range" -> say(trial, send(
          request("/files/" + name + "-put", "Range", "bytes=1000-"), "GET", nothing()), "");
      case "delete" -> say(trial, send(
          request("/files/" + name + "-put"), "DELETE", nothing()), "");
      default -> throw new IllegalArgumentException(trial);
    }
  }

  static void resume() throws Exception {
    String length = Integer.toString(content.length);
    URI upload = URI.create(send(
        request("/files/", "Upload-Complete", "?0", "Upload-Length", length), "POST", nothing())
        .headers().firstValue("Location").orElseThrow());
    String media = "application/partial-upload";
    try {
      send(to(upload, "Content-Type", media, "Upload-Complete", "?1", "Upload-Offset", "0"),
          "PATCH", BodyPublishers.fromPublisher(
              BodyPublishers.ofInputStream(() -> stream(0, content.length / 2)), content.length));
    } catch (IOException error) {
      System.err.println("cut: " + error);
    }
    String at = send(to(upload), "HEAD", nothing())
        .headers().firstValue("Upload-Offset").orElseThrow();
    int offset = Integer.parseInt(at);
    say("resume", send(
        to(upload, "Content-Type", media, "Upload-Complete", "?1", "Upload-Offset", at), "PATCH",
        BodyPublishers.ofByteArray(content, offset, content.length - offset)), ", \"offset\": " + at);
  }

  static BodyPublisher whole() {
    return BodyPublishers.ofByteArray(content);
  }

  static BodyPublisher nothing() {
    return BodyPublishers.noBody();
  }

  // The content as a stream that breaks at `end`, if that is not the content's own.
  static InputStream stream(int start, int end) {
    return new InputStream() {
      int at = start;

      @Override
      public int read() throws IOException {
        byte[] one = new byte[1];
        return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
      }

      @Override
      public int read(byte[] into, int offset, int most) throws IOException {
        if (at >= end) {
          if (end == content.length) {
            return -1;
          }
          try {
            Thread.sleep(300); // what was sent shall not be lost with the connection
          } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
          }
          throw new IOException("the source broke");
        }
        int size = Math.min(most, end - at);
        System.arraycopy(content, at, into, offset, size);
        at += size;
        return size;
      }
    };
  }

  static HttpRequest.Builder request(String target, String... fields) {
    return to(URI.create(root + target), fields);
  }

  static HttpRequest.Builder to(URI uri, String... fields) {
    HttpRequest.Builder builder = HttpRequest.newBuilder(uri).timeout(Duration.ofSeconds(20));
    for (int i = 0; i < fields.length; i += 2) {
      builder.header(fields[i], fields[i + 1]);
    }
    return builder;
  }

  static HttpResponse<byte[]> send(HttpRequest.Builder builder, String method, BodyPublisher body)
      throws Exception {
    return CLIENT.send(builder.method(method, body).build(), BodyHandlers.ofByteArray());
  }

  static void say(String trial, HttpResponse<byte[]> answer, String further) throws Exception {
    StringBuilder fields = new StringBuilder();
    for (Map.Entry<String, java.util.List<String>> field
        : new TreeMap<>(answer.headers().map()).entrySet()) {
      fields.append(fields.length() > 0 ? ", " : "").append(quoted(field.getKey().toLowerCase()))
          .append(": ").append(quoted(String.join(", ", field.getValue())));
    }
    String digest = HexFormat.of()
        .formatHex(MessageDigest.getInstance("SHA-256").digest(answer.body()));
    String text = answer.body().length <= 4096 ? new String(answer.body()) : "";
    System.out.println("{\"trial\": " + quoted(trial) + ", \"status\": " + answer.statusCode()
        + ", \"fields\": {" + fields + "}, \"digest\": " + quoted(digest)
        + ", \"text\": " + quoted(text) + further + "}");
  }

  static String quoted(String text) {
    return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", " ") + "\"";
  }
}
