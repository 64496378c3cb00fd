// The tus trials of registry.py with io.tus.java.client:tus-java-client.

import io.tus.java.client.TusClient;
import io.tus.java.client.TusURLMemoryStore;
import io.tus.java.client.TusUpload;
import io.tus.java.client.TusUploader;
import java.io.File;
import java.net.URL;

public class TusJava {
  public static void main(String[] args) {
    for (int i = 4; i < args.length; i++) {
      String said;
      try {
        said = "\"url\": \"" + run(args[i], args[0], new File(args[2])) + "\"";
      } catch (Exception error) {
        said = "\"error\": \"" + error.toString().replace("\"", "'").replace("\n", " ") + "\"";
      }
      System.out.println("{\"trial\": \"" + args[i] + "\", " + said + "}");
    }
  }

  static URL run(String trial, String root, File file) throws Exception {
    TusClient client = new TusClient();
    client.setUploadCreationURL(new URL(root + "/files/"));
    client.enableResuming(new TusURLMemoryStore());
    TusUploader uploader = client.createUpload(new TusUpload(file));
    if (trial.equals("tus-resume")) {
      uploader.setChunkSize(100_000);
      for (int i = 0; i < 9; i++) {
        uploader.uploadChunk();
      }
      uploader.finish(); // its request ends before its content does
      uploader = client.resumeUpload(new TusUpload(file));
      if (uploader.getOffset() == 0 || uploader.getOffset() > 900_000) {
        throw new Exception("the offset is " + uploader.getOffset());
      }
    }
    if (!trial.equals("tus-whole")) {
      uploader.setRequestPayloadSize(700_000);
    }
    uploader.setChunkSize(100_000);
    while (uploader.uploadChunk() > -1) {
      continue;
    }
    uploader.finish();
    return uploader.getUploadURL();
  }
}
