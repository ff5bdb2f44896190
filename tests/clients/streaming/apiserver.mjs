// Stands in for an API server and its kubelet: asks a runtime for the URL of each exec, attach and port-forward that a client
// wants, and connects the client with it. All that the client sends behind its request line passes as it is, and so does
// every byte of the answer.
//   node apiserver.mjs API.PROTO SOCKET     listens on loopback, and prints the URL
// Pods and containers go by the runtime's ids.
import { connect, createServer } from 'node:net';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const [proto, socket] = process.argv.slice(2);
const { runtime } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }));
const calls = new runtime.v1.RuntimeService(`unix:${socket}`, grpc.credentials.createInsecure());

const request = /^GET (\/api\/v1\/namespaces\/[^/]+\/pods\/([^/]+)\/(exec|attach|portforward)\S*) HTTP\/1.1$/;

// The call and its argument that a request line stands for.
function call(line) {
    const [, target, pod, action] = line.match(request) ?? [];
    if (!target) throw new Error(`not served here: ${line}`);
    const query = new URL(target, 'http://any').searchParams;
    const asked = (name) => !['', '0', 'false'].includes((query.get(name) ?? '').toLowerCase());
    if (action === 'portforward') {
        const port = query.getAll('ports').flatMap((ports) => ports.split(',').map(Number));
        return ['PortForward', { pod_sandbox_id: pod, port }];
    }
    const streams = Object.fromEntries(['stdin', 'stdout', 'stderr', 'tty'].map((name) => [name, asked(name)]));
    // As a kubelet does: a terminal has one output.
    streams.stderr &&= !streams.tty;
    const wanted = { container_id: query.get('container'), ...streams };
    return action === 'attach' ? ['Attach', wanted] : ['Exec', { ...wanted, cmd: query.getAll('command') }];
}

function ask([name, argument]) {
    return new Promise((resolve, reject) =>
        calls[name](argument, (error, answer) => (error ? reject(error) : resolve(new URL(answer.url))))
    );
}

// Reads up to the end of the request line; the rest is put back.
function requestLine(client) {
    return new Promise((resolve) => {
        let head = Buffer.alloc(0);
        client.on('readable', function read() {
            for (let chunk; (chunk = client.read()) !== null; ) head = Buffer.concat([head, chunk]);
            const end = head.indexOf('\r\n');
            if (end < 0) return;
            client.off('readable', read);
            client.unshift(head.subarray(end));
            resolve(head.subarray(0, end).toString());
        });
    });
}

async function serve(client) {
    client.on('error', () => client.destroy());
    try {
        const url = await ask(call(await requestLine(client)));
        const runtime = connect({ host: url.hostname, port: url.port, allowHalfOpen: true });
        client.on('close', () => runtime.destroy());
        runtime.on('error', () => client.destroy());
        runtime.write(`GET ${url.pathname} HTTP/1.1`);
        client.pipe(runtime).pipe(client);
    } catch (error) {
        client.end(`HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n${error.message}\n`);
    }
}

const server = createServer({ allowHalfOpen: true, noDelay: true }, serve);
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
