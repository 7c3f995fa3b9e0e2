import java.lang.IllegalStateException;
import java.nio.file.*;
import java.util.*;
import javax.jms.*;
import javax.jms.Message;
import javax.jms.Queue;
import javax.transaction.xa.*;
import org.apache.activemq.*;
import org.apache.activemq.command.ActiveMQMessage;

/**
 * A JMS application over OpenWire that does what its arguments say: Client OUT.json PORT ACTION...
 *
 * receive|QUEUE|COUNT                        consumes everything, and that must be COUNT messages
 * receiveDurable|CLIENT|NAME|TOPIC|SELECTOR|COUNT
 * take|QUEUE|COUNT                           consumes COUNT messages one by one
 * takeDurable|CLIENT|NAME|TOPIC|SELECTOR|COUNT
 * send|QUEUE|COUNT   publish|TOPIC|COUNT     all body kinds and property types in turn
 * commit|FROM|TO|COUNT   rollback|FROM|TO|COUNT   moves COUNT messages in a transaction
 * unsubscribe|CLIENT|NAME
 * recover                                    lists the transactions in doubt
 * xaCommit|GLOBAL   xaRollback|GLOBAL        decides one
 * xaPrepare|GLOBAL|QUEUE|COUNT               leaves one prepared
 *
 * OUT.json gets what was received, a list per action that receives, and `inDoubt` for `recover`.
 */
public class Client {
    static int port;
    static final Map<String, Object> out = new LinkedHashMap<>();

    static ActiveMQConnection open(String clientId) throws Exception {
        ActiveMQConnectionFactory f = new ActiveMQConnectionFactory(uri());
        f.setAlwaysSyncSend(true);
        f.setWatchTopicAdvisories(false);
        f.setTrustAllPackages(true);
        ActiveMQConnection c = (ActiveMQConnection) f.createConnection();
        if (clientId != null) c.setClientID(clientId);
        c.start();
        return c;
    }

    static String uri() { return "tcp://127.0.0.1:" + port + "?wireFormat.maxInactivityDuration=0"; }

    static ActiveMQXAConnection openXa() throws Exception {
        ActiveMQXAConnectionFactory f = new ActiveMQXAConnectionFactory(uri());
        f.setAlwaysSyncSend(true);
        f.setWatchTopicAdvisories(false);
        ActiveMQXAConnection c = (ActiveMQXAConnection) f.createXAConnection();
        c.start();
        return c;
    }

    static Message make(Session s, int i) throws Exception {
        Message m;
        switch (i % 6) {
            case 0: m = s.createTextMessage("text \u00fc\u2713\ud83d\ude80 " + i); break;
            case 1: {
                BytesMessage b = s.createBytesMessage();
                byte[] d = new byte[i * 37 % 900];
                for (int k = 0; k < d.length; k++) d[k] = (byte) (k * i);
                b.writeBytes(d);
                m = b;
                break;
            }
            case 2: { MapMessage q = s.createMapMessage(); q.setInt("i", i); q.setString("s", "m\u00e4p"); q.setDouble("d", i / 3.0); m = q; break; }
            case 3: { StreamMessage q = s.createStreamMessage(); q.writeInt(i); q.writeString("stream"); m = q; break; }
            case 4: m = s.createObjectMessage(new ArrayList<>(Arrays.asList("obj", i, 2.5))); break;
            default: m = s.createMessage(); break;
        }
        m.setIntProperty("index", i);
        switch (i % 7) {
            case 0: m.setBooleanProperty("b", true); break;
            case 1: m.setByteProperty("y", (byte) (i - 20)); break;
            case 2: m.setShortProperty("s", (short) (i * 1000 - 30000)); break;
            case 3: m.setLongProperty("l", i * 10000000000L - 7); break;
            case 4: m.setFloatProperty("f", i + 0.25f); break;
            case 5: m.setDoubleProperty("d", -i - 0.125); break;
            default: m.setStringProperty("str", "v\u00e9\u4e2d\ud83d\ude00-" + i); break;
        }
        if (i % 5 == 0) { m.setJMSCorrelationID("corr-" + i); m.setJMSType("type." + i); }
        return m;
    }

    static void send(Session s, Destination d, int count) throws Exception {
        MessageProducer p = s.createProducer(d);
        for (int i = 0; i < count; i++) p.send(make(s, i), DeliveryMode.PERSISTENT, i % 10, 0);
        p.close();
    }

    /** Individually acknowledged, so that a larger prefetch changes nothing about what stays. */
    static List<Object> take(MessageConsumer consumer, int count, boolean andNoMore) throws Exception {
        List<Object> got = new ArrayList<>();
        while (got.size() < count) {
            Message m = consumer.receive(10000);
            if (m == null) throw new IllegalStateException("only " + got.size() + " of " + count + " messages came");
            m.acknowledge();
            got.add(Dump.msg((ActiveMQMessage) m));
        }
        if (andNoMore) {
            Message m = consumer.receive(500);
            if (m != null) throw new IllegalStateException("one message too many: " + m.getJMSMessageID());
        }
        consumer.close();
        return got;
    }

    static void queue(String name, int count, boolean andNoMore, String key) throws Exception {
        ActiveMQConnection c = open(null);
        Session s = c.createSession(false, ActiveMQSession.INDIVIDUAL_ACKNOWLEDGE);
        out.put(key, take(s.createConsumer(s.createQueue(name)), count, andNoMore));
        c.close();
    }

    static void durable(String[] p, boolean andNoMore, String key) throws Exception {
        ActiveMQConnection c = open(p[1]);
        Session s = c.createSession(false, ActiveMQSession.INDIVIDUAL_ACKNOWLEDGE);
        String selector = p[4].isEmpty() ? null : p[4];
        MessageConsumer d = s.createDurableSubscriber(s.createTopic(p[3]), p[2], selector, false);
        out.put(key, take(d, Integer.parseInt(p[5]), andNoMore));
        c.close();
    }

    static void move(String from, String to, int count, boolean commit) throws Exception {
        ActiveMQConnection c = open(null);
        Session s = c.createSession(true, Session.SESSION_TRANSACTED);
        MessageConsumer r = s.createConsumer(s.createQueue(from));
        MessageProducer p = s.createProducer(s.createQueue(to));
        for (int i = 0; i < count; i++) {
            if (r.receive(10000) == null) throw new IllegalStateException("nothing left in " + from);
            p.send(make(s, i));
        }
        if (commit) s.commit(); else s.rollback();
        c.close();
    }

    record Id(int getFormatId, byte[] getGlobalTransactionId, byte[] getBranchQualifier) implements Xid {}

    static Xid find(XAResource r, String global) throws Exception {
        for (Xid x : r.recover(XAResource.TMSTARTRSCAN)) {
            if (new String(x.getGlobalTransactionId(), "UTF-8").equals(global)) return x;
        }
        throw new IllegalStateException("no transaction " + global + " is in doubt");
    }

    static void xa(String[] p) throws Exception {
        ActiveMQXAConnection c = openXa();
        XASession s = c.createXASession();
        XAResource r = s.getXAResource();
        switch (p[0]) {
            case "recover": {
                List<Object> all = new ArrayList<>();
                for (Xid x : r.recover(XAResource.TMSTARTRSCAN)) {
                    Map<String, Object> q = new LinkedHashMap<>();
                    q.put("formatId", x.getFormatId());
                    q.put("globalTransactionIdHex", Dump.hex(x.getGlobalTransactionId()));
                    q.put("branchQualifierHex", Dump.hex(x.getBranchQualifier()));
                    all.add(q);
                }
                out.put("inDoubt", all);
                break;
            }
            case "xaCommit": r.commit(find(r, p[1]), false); break;
            case "xaRollback": r.rollback(find(r, p[1])); break;
            default: {
                Xid x = new Id(77, p[1].getBytes("UTF-8"), "branch-\u00e9".getBytes("UTF-8"));
                r.start(x, XAResource.TMNOFLAGS);
                send(s, s.createQueue(p[2]), Integer.parseInt(p[3]));
                r.end(x, XAResource.TMSUCCESS);
                r.prepare(x);
            }
        }
        c.close();
    }

    static void act(String action) throws Exception {
        String[] p = action.split("\\|", -1);
        switch (p[0]) {
            case "receive": queue(p[1], Integer.parseInt(p[2]), true, action); break;
            case "take": queue(p[1], Integer.parseInt(p[2]), false, action); break;
            case "receiveDurable": durable(p, true, action); break;
            case "takeDurable": durable(p, false, action); break;
            case "send": case "publish": {
                ActiveMQConnection c = open(null);
                Session s = c.createSession(false, Session.AUTO_ACKNOWLEDGE);
                send(s, p[0].equals("send") ? s.createQueue(p[1]) : s.createTopic(p[1]), Integer.parseInt(p[2]));
                c.close();
                break;
            }
            case "commit": case "rollback": move(p[1], p[2], Integer.parseInt(p[3]), p[0].equals("commit")); break;
            case "unsubscribe": {
                ActiveMQConnection c = open(p[1]);
                c.createSession(false, Session.AUTO_ACKNOWLEDGE).unsubscribe(p[2]);
                c.close();
                break;
            }
            case "recover": case "xaCommit": case "xaRollback": case "xaPrepare": xa(p); break;
            default: throw new IllegalArgumentException(action);
        }
    }

    public static void main(String[] a) throws Exception {
        port = Integer.parseInt(a[1]);
        for (int i = 2; i < a.length; i++) act(a[i]);
        Files.writeString(Path.of(a[0]), Json.of(out));
        System.exit(0);
    }
}
