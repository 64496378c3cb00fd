// Serves tus uploads into a directory on a port of the loopback interface.
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const [directory, port] = process.argv.slice(2);
const server = new Server({ path: "/files", datastore: new FileStore({ directory }) });
server.listen({ host: "127.0.0.1", port: Number(port), backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
// Node 20 closes a web stream twice if the connection ends after the request was answered.
// The exception of that would end the whole server, so it is ignored.
process.on("uncaughtException", (error) => {
  console.error(error);
  if (error.code !== "ERR_INVALID_STATE") process.exit(1);
});
